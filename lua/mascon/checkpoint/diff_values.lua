--- The comparison of two pieces of tensors, element by element, and of two small values.
--
-- Without tolerances bits decide (so -0 is not 0, and one NaN is not another), as in mc.equal; with them, or between
-- two dtypes, values do: |a - b| <= atol + rtol * |b|, two NaNs are equal. Pieces with equal bits cost one comparison.
local ffi = require "ffi"
local lib = require "mascon.lib"
local ops = require "mascon.ops"

local C = lib.C

local M = {}

local HUGE = math.huge
local RAW = { ffi.typeof "const uint8_t *", ffi.typeof "const uint16_t *", nil, ffi.typeof "const uint32_t *",
  nil, nil, nil, ffi.typeof "const int64_t *" } -- by bytes of an element

--- What has been found about a tensor so far.
function M.state()
  return { count = 0, first = nil, first_a = nil, first_b = nil, max_abs = 0, max_rel = 0, dot = 0, aa = 0, bb = 0 }
end

-- The larger of two, NaN when either is.
local function larger(a, b)
  if a ~= a or b <= a then return a end
  return b
end

local function add_products(found, a, b, n)
  local dot, aa, bb = 0, 0, 0
  for i = 0, n - 1 do
    local x, y = a[i], b[i]
    dot, aa, bb = dot + x * y, aa + x * x, bb + y * y
  end
  found.dot, found.aa, found.bb = found.dot + dot, found.aa + aa, found.bb + bb
end

-- raw_a, raw_b: the bits of the elements, or nil to go by values.
local function compare_elements(found, a, b, n, at, raw_a, raw_b, exact, rtol, atol, is_int64)
  local count, first, max_abs, max_rel = 0, nil, found.max_abs, found.max_rel
  for i = 0, n - 1 do
    local x, y = a[i], b[i]
    local distance = math.abs(x - y)
    local differs
    if x == y then
      distance = is_int64 and math.abs(tonumber(raw_a[i] - raw_b[i])) or 0 -- float64 rounds beyond 2^53
      differs = exact and raw_a[i] ~= raw_b[i] or distance > atol + rtol * math.abs(y)
    elseif x ~= x and y ~= y then
      distance = 0
      differs = exact and raw_a[i] ~= raw_b[i]
    else
      local far = not (distance <= atol + rtol * math.abs(y)) -- luacheck: ignore 581 (a NaN is far)
      differs = far or distance == HUGE
    end
    if differs then
      count = count + 1
      first = first or i
    end
    if distance ~= 0 then
      max_abs = larger(max_abs, distance)
      max_rel = larger(max_rel, distance / math.abs(y))
    end
  end
  if count > 0 and found.count == 0 then
    found.first = at + first
    if is_int64 then
      found.first_a, found.first_b = raw_a[first] + 0LL, raw_b[first] + 0LL
    else
      found.first_a, found.first_b = a[first], b[first]
    end
  end
  found.count, found.max_abs, found.max_rel = found.count + count, max_abs, max_rel
end

--- Compares two fetched pieces that begin at element `at` of their tensor.
-- @tparam table found see state
-- @tparam table readers {a, b}: those that fetched x and y
-- @tparam table opts rtol, atol, stats
function M.compare(found, x, y, at, readers, opts)
  local one_dtype = x.dtype == y.dtype
  local equal = one_dtype and ops.equal(x, y)
  if equal and not opts.stats then return end
  local n = x:numel()
  local a, b = readers.a:numbers(x), readers.b:numbers(y)
  if opts.stats then add_products(found, a, b, n) end
  if equal then return end
  local raw_a, raw_b
  if one_dtype then
    local raw = RAW[x:element_size()]
    raw_a, raw_b = ffi.cast(raw, C.mc_tensor_data(x.h)), ffi.cast(raw, C.mc_tensor_data(y.h))
  end
  local exact = one_dtype and opts.rtol == 0 and opts.atol == 0
  compare_elements(found, a, b, n, at, raw_a, raw_b, exact, opts.rtol, opts.atol, one_dtype and x.dtype == "int64")
end

--- The report about a tensor that differs.
function M.result(found, pair, opts)
  local index, rest, of = {}, found.first, 1
  for axis = #pair.shape, 1, -1 do
    index[axis] = rest % pair.shape[axis]
    rest = math.floor(rest / pair.shape[axis])
  end
  for _, size in ipairs(pair.shape) do of = of * size end
  return { name = pair.name, shape = pair.shape, count = found.count, of = of, max_abs = found.max_abs,
    max_rel = found.max_rel, first = { index = index, a = found.first_a, b = found.first_b },
    cosine = opts.stats and found.dot / (math.sqrt(found.aa) * math.sqrt(found.bb)) or nil }
end

--- Whether two small values are equal. Numbers: within the tolerances; without any, -0 is not 0.
function M.same(a, b, opts)
  local both = (type(a) == "number" or ffi.istype("int64_t", a)) and (type(b) == "number" or ffi.istype("int64_t", b))
  if not both then return a == b end
  if a ~= a or b ~= b then return a ~= a and b ~= b end
  local tolerance = opts.atol + opts.rtol * math.abs(tonumber(b))
  if tolerance > 0 then return a == b or math.abs(tonumber(a) - tonumber(b)) <= tolerance end
  return a == b and (a ~= 0 or 1 / tonumber(a) == 1 / tonumber(b))
end

return M
