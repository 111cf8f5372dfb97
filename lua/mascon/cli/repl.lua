-- mascon repl: reads Lua a line at a time, runs it and prints what an expression gives.
--
-- `mc` is the library and the only global that is added. A statement that is not complete yet goes on
-- with the next line. Errors are printed and the loop goes on; end of input leaves it. Works on a
-- pipe, too: without a terminal there are no prompts and no greeting.

local term = require("term")

local M = {summary = "Read, evaluate and print Lua, line by line."}

local function is_incomplete(message)
  return message:find("near '<eof>'", 1, true) ~= nil
end

-- `=x` and `x` give x behind a nil: "return x" alone would be a tail call, whose errors know no line.
-- Whatever is no expression is a statement.
-- Returns the function, or nil, the message and whether more lines could make it right.
local function compile(text)
  local chunk, why_no_value = loadstring("return nil, " .. text:gsub("^%s*=", ""), "=stdin")
  if chunk then return chunk end
  local statement, message = loadstring(text, "=stdin")
  if statement then return statement end
  return nil, message, is_incomplete(message) or is_incomplete(why_no_value)
end

local function pack(...)
  return {n = select("#", ...), ...}
end

-- Runs one complete piece of Lua; values go to `out`, the error of a failing piece to `err`.
local function evaluate(chunk, out, err)
  local results = pack(pcall(chunk))
  if not results[1] then
    err:write(tostring(results[2]), "\n")
    return
  end
  if results.n <= 2 then return end -- true, and an expression's nil
  local texts = {}
  for i = 3, results.n do texts[#texts + 1] = tostring(results[i]) end
  out:write(table.concat(texts, "\t"), "\n")
end

--- The loop on any streams.
-- @tparam file input
-- @tparam file out values and, when `prompts`, the prompts
-- @tparam file err error messages
-- @tparam boolean prompts
function M.loop(input, out, err, prompts)
  local pending
  while true do
    if prompts then
      out:write(pending and ">> " or "> ")
      out:flush()
    end
    local line = input:read("*l")
    if not line then break end
    local text = pending and pending .. "\n" .. line or line
    pending = nil
    if text:find("%S") then
      local chunk, message, incomplete = compile(text)
      if chunk then
        evaluate(chunk, out, err)
      elseif incomplete then
        pending = text
      else
        err:write(message, "\n")
      end
    end
  end
  if pending then err:write(select(2, compile(pending)), "\n") end
  if prompts then out:write("\n") end
end

--- Runs the loop on the standard streams.
-- @treturn int 0
function M.run()
  local mc = require("mascon")
  rawset(_G, "mc", mc)
  local terminal = term.isatty(io.stdin)
  if terminal then
    print(("mascon %s, %s; mc is the library, Ctrl-D leaves"):format(mc.version, jit.version))
  end
  M.loop(io.stdin, io.stdout, io.stderr, terminal)
  return 0
end

return M
