-- mascon repl: reads Lua a line at a time, runs it and prints what an expression gives.
--
-- `mc` is the library and the only global that is added. A statement that is not complete yet goes on
-- with the next line. Errors are printed and the loop goes on; end of input leaves it. Works on a
-- pipe, too: without a terminal there are no prompts and no greeting.

local term = require("term")

local help = require("mascon.cli.help")

local M = {summary = "Read, evaluate and print Lua, line by line."}

function M.options(command) help.example(command, "mascon repl") end

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

local MOST_ENTRIES = 20 -- of a table that are shown

-- A table that has no text of its own is shown one level deep: {2, 3, name = "x"}; a list inside one as {...}.
local function show(value, inside)
  if type(value) == "string" and inside then return ("%q"):format(value) end
  if type(value) ~= "table" or getmetatable(value) ~= nil then return tostring(value) end
  if next(value) == nil then return "{}" end
  if inside then return "{...}" end
  local texts, in_list = {}, 0
  for i, v in ipairs(value) do
    if i > MOST_ENTRIES then break end
    texts[i], in_list = show(v, true), i
  end
  local named = {}
  for k, v in pairs(value) do
    if type(k) ~= "number" or k < 1 or k > #value or k % 1 ~= 0 then
      local name = type(k) == "string" and k:match("^[%a_][%w_]*$") or "[" .. show(k, true) .. "]"
      named[#named + 1] = name .. " = " .. show(v, true)
    end
  end
  table.sort(named)
  for i = 1, math.min(#named, MOST_ENTRIES - in_list) do texts[#texts + 1] = named[i] end
  local rest = #value + #named - #texts
  return "{" .. table.concat(texts, ", ") .. (rest > 0 and (", ... %d more}"):format(rest) or "}")
end

-- Runs one complete piece of Lua; values go to `out`, the error of a failing piece to `err`.
local function evaluate(chunk, out, err)
  local results = pack(pcall(chunk))
  local first = 3 -- behind true and an expression's nil
  local shown, why = pcall(function()
    if not results[1] then error(results[2], 0) end
    for i = first, results.n do out:write(i > first and "\t" or "", show(results[i])) end
    if results.n >= first then out:write("\n") end
  end)
  if not shown then
    local told, text = pcall(tostring, why)
    err:write(told and text or "(an error whose text cannot be made)", "\n")
  end
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
