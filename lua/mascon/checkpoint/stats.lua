--- Statistics of the values of a dataset: one pass in pieces, in float64.
--
-- min, max, mean and std (of the whole, not of a sample) are those of the finite values; zeros, nan and inf are
-- counts. Means and squared distances are made per piece and merged by Chan's formula, so that a large mean does
-- not swallow a small deviation.
local M = {}

local HUGE = math.huge

local function empty() return { count = 0, finite = 0, zeros = 0, nan = 0, inf = 0, mean = 0, squares = 0 } end

-- Takes `part` into `all`.
local function take(all, part)
  local before, fresh = all.finite, part.finite
  all.count, all.finite = all.count + part.count, before + fresh
  all.zeros, all.nan, all.inf = all.zeros + part.zeros, all.nan + part.nan, all.inf + part.inf
  if fresh == 0 then return end
  local distance = part.mean - all.mean
  all.mean = all.mean + distance * (fresh / all.finite)
  all.squares = all.squares + part.squares + distance * distance * (before * (fresh / all.finite))
  all.min, all.max = math.min(all.min or HUGE, part.min), math.max(all.max or -HUGE, part.max)
end

local function of_piece(values, n)
  local part = empty()
  local sum, zeros, nan, inf, low, high = 0, 0, 0, 0, HUGE, -HUGE
  for i = 0, n - 1 do
    local x = values[i]
    if x ~= x then
      nan = nan + 1
    elseif x == HUGE or x == -HUGE then
      inf = inf + 1
    else
      sum = sum + x
      if x == 0 then zeros = zeros + 1 end
      if x < low then low = x end
      if x > high then high = x end
    end
  end
  part.count, part.zeros, part.nan, part.inf, part.finite = n, zeros, nan, inf, n - nan - inf
  if part.finite == 0 then return part end
  part.min, part.max = low, high
  part.mean = sum / part.finite
  local mean, squares = part.mean, 0
  for i = 0, n - 1 do
    local distance = values[i] - mean
    if distance - distance == 0 then squares = squares + distance * distance end -- not for NaN and Inf
  end
  part.squares = squares
  return part
end

local function result(all)
  local some = all.finite > 0
  return { count = all.count, min = all.min, max = all.max, mean = some and all.mean or nil,
    std = some and math.sqrt(all.squares / all.finite) or nil, zeros = all.zeros, nan = all.nan, inf = all.inf }
end

--- Statistics of a dataset.
-- @tparam Reader reader of pieces.lua
-- @treturn table {count, min, max, mean, std, zeros, nan, inf}; the first four values are nil where nothing is finite
function M.of(reader, file, entry)
  local all = empty()
  reader:each(file, entry, function(values, n) take(all, of_piece(values, n)) end)
  return result(all)
end

--- Statistics of several datasets together, from those of each.
function M.merge(list)
  local all = empty()
  for _, s in ipairs(list) do
    local finite = s.count - s.nan - s.inf
    take(all, { count = s.count, finite = finite, zeros = s.zeros, nan = s.nan, inf = s.inf, min = s.min, max = s.max,
      mean = s.mean or 0, squares = (s.std or 0) ^ 2 * finite })
  end
  return result(all)
end

return M
