--- What holds while a function runs: mc.no_grad, mc.scope. In a coroutine it holds between a resume and the next yield
-- only, so that a generator that waits inside one leaves the code that drives it alone.
local M = {}

local forward

-- `results` of coroutine.resume: either fn has ended, or it yields, and we do so for it.
local function passed(enter, exit, co, ok, ...)
  exit()
  if coroutine.status(co) == "suspended" then
    return forward(enter, exit, co, coroutine.yield(...))
  end
  return ok, ...
end

function forward(enter, exit, co, ...)
  enter()
  return passed(enter, exit, co, coroutine.resume(co, ...))
end

local function left(exit, ...)
  exit()
  return ...
end

--- As pcall(fn, ...), with enter() called before every stretch of fn's run and exit() after it.
function M.run(enter, exit, fn, ...)
  if coroutine.running() then
    return forward(enter, exit, coroutine.create(function(...) return fn(...) end), ...)
  end
  enter()
  return left(exit, pcall(fn, ...))
end

return M
