--- Does one entry fit one place? Shapes and dtypes of the load planner, without any choice between
-- layouts. Pure Lua.
--
-- Each shape rule returns nil when the shapes are equal, "reshape" when only the bracketing differs
-- (row-major order is the same), or a list of {code, text} problems. Letters: G experts, N out
-- features, K in features.

local experts = require("mascon.checkpoint.plan_experts")
local names = require("mascon.checkpoint.plan_names")

local M = {}

local show, numel = names.shape, names.numel

-- Value bits of each dtype: {mantissa bits, exponent bits} for floats, value bits for integers.
local FLOAT = { float64 = { 52, 11 }, float32 = { 23, 8 }, float16 = { 10, 5 }, bfloat16 = { 7, 8 } }
local INTEGER = { int64 = 63, int32 = 31, uint8 = 8 }
local FLOAT8 = { float8_e4m3fn = true, float8_e5m2 = true, float8_e8m0fnu = true }

local function kind_of(dtype)
  if FLOAT[dtype] then return "float" end
  if INTEGER[dtype] then return "integer" end
  if FLOAT8[dtype] then return "float8" end
  if dtype == "bool" then return "bool" end
  return nil
end

--- How a value of dtype `from` gets into dtype `to`.
-- @treturn string|nil "same", "widen" (exact) or "narrow" (may round); nil when refused
-- @treturn string why it is refused
function M.cast(from, to)
  if from == to then return "same" end
  local a, b = kind_of(from), kind_of(to)
  if not a then return nil, ("%s is not a known dtype"):format(tostring(from)) end
  if a == "float8" or b == "float8" then
    return nil, "8-bit codes mean nothing without their scales"
  end
  if a ~= b then return nil, ("%s values are not turned into %s ones"):format(a, b) end
  if a == "float" then
    local x, y = FLOAT[from], FLOAT[to]
    return x[1] <= y[1] and x[2] <= y[2] and "widen" or "narrow"
  end
  -- uint8 fits in both wider types; the wider ones are signed, so the value bits decide
  return INTEGER[from] <= INTEGER[to] and "widen" or "narrow"
end

--- Why a Lua number cannot be the one element of a tensor of `dtype`; nil when it can.
function M.number(value, dtype)
  local kind = kind_of(dtype)
  if kind == "float" then return nil end
  if kind == "integer" and value == math.floor(value) then
    local least = dtype == "uint8" and 0 or -2 ^ INTEGER[dtype]
    if value >= least and value < 2 ^ INTEGER[dtype] then return nil end
  end
  return ("found the number %s, wanted %s"):format(tostring(value), dtype)
end

local function shape_problem(found, wanted, hint)
  return { code = "shape", text = ("found %s, wanted %s%s"):format(show(found), show(wanted),
    hint and "; " .. hint or "") }
end

local function count_problem(found, range, shape)
  return { code = "count", text = ("%.0f experts in the checkpoint (shape %s), %s"):format(found, show(shape),
    experts.wanted(range)) }
end

local function is_transposed(a, b)
  return #a == 2 and #b == 2 and a[1] == b[2] and a[2] == b[1] and a[1] ~= a[2]
end

local AXES = { weight = 3, bias = 2 } -- of all experts as one

local TRANSPOSED = "it looks transposed: weights are [out_features, in_features]"

--- An ordinary tensor. One number is one number, with or without an axis.
function M.plain(found, wanted)
  if names.same_shape(found, wanted) then return nil end
  if #found + #wanted == 1 and numel(found) == numel(wanted) then return "reshape" end
  return { shape_problem(found, wanted, is_transposed(found, wanted) and TRANSPOSED or nil) }
end

local function packed_weight(found, wanted, range, marked_count)
  local G, N, K = wanted[1], wanted[2], wanted[3]
  if #found == 3 then
    local problems = {}
    if found[1] ~= G then problems[1] = count_problem(found[1], range, found) end
    if found[2] == K and found[3] == N and N ~= K then
      problems[#problems + 1] = shape_problem(found, wanted,
        "each expert looks transposed: weights are [out_features, in_features]")
    elseif found[2] ~= N or found[3] ~= K then
      problems[#problems + 1] = shape_problem(found, wanted)
    end
    return problems
  end
  if #found ~= 2 then return { shape_problem(found, wanted) } end
  local rows, columns = found[1], found[2]
  if marked_count and columns == K and rows == marked_count * N then
    if marked_count == G then return "reshape" end
    return { count_problem(marked_count, range, found) }
  end
  local hint
  if rows == G * N and columns == K then
    hint = ("it looks like [%.0f * %.0f, %.0f], the experts below one another: reshape it to %s")
      :format(G, N, K, show(wanted))
  elseif rows == N and columns == G * K then
    hint = ("it looks like [%.0f, %.0f * %.0f], the experts side by side: split it into %s")
      :format(N, G, K, show(wanted))
  elseif rows == N and columns == K then
    hint = "it has the shape of one expert"
  end
  return { shape_problem(found, wanted, hint) }
end

local function packed_bias(found, wanted, range)
  local G, N = wanted[1], wanted[2]
  if #found == 1 then
    if found[1] == G * N then return "reshape" end
    local hint = found[1] == N and "it has the shape of one expert" or nil
    return { shape_problem(found, wanted, hint) }
  end
  if #found == 2 then
    if is_transposed(found, wanted) then
      return { shape_problem(found, wanted, "it looks transposed: biases are [experts, out_features]") }
    end
    local problems = {}
    if found[1] ~= G then problems[1] = count_problem(found[1], range, found) end
    if found[2] ~= N then problems[#problems + 1] = shape_problem(found, wanted) end
    return problems
  end
  if #found == 3 and found[2] == 1 and found[3] == N then
    if found[1] == G then return "reshape" end
    return { count_problem(found[1], range, found) }
  end
  return { shape_problem(found, wanted) }
end

--- All experts of a want in one entry.
-- @tparam {number,...} found shape of the entry
-- @tparam table want its packed.role says which rule holds
-- @tparam table range of plan_experts.lua: the entry must have its total, of which the want may be a part
-- @tparam number|nil marked_count experts a 2-D weight is declared to hold by its metadata
function M.packed(found, want, range, marked_count)
  local role = want.packed.role
  if role == "scalar" then
    if numel(found) == 1 then return nil end
    return { shape_problem(found, want.shape) }
  end
  local wanted = { range.total, unpack(want.shape, 2) }
  if names.same_shape(found, wanted) then return nil end
  if #wanted ~= AXES[role] then return { shape_problem(found, wanted) } end -- a stranger's layer: no rule but equality
  if role == "weight" then return packed_weight(found, wanted, range, marked_count) end
  return packed_bias(found, wanted, range)
end

--- One expert of a want in an entry of its own.
function M.member(found, want)
  local role = want.packed.role
  if role == "scalar" then
    if numel(found) == 1 then return nil end
    return { shape_problem(found, want.shape) }
  end
  local wanted = {}
  for i = 2, #want.shape do wanted[i - 1] = want.shape[i] end
  if names.same_shape(found, wanted) then return nil end
  if role == "weight" then
    return { shape_problem(found, wanted, is_transposed(found, wanted) and TRANSPOSED or nil) }
  end
  local N = wanted[1]
  if #found == 0 and N == 1 then return "reshape" end
  if #found == 2 and numel(found) == N and (found[1] == 1 or found[2] == 1) then return "reshape" end
  return { shape_problem(found, wanted) }
end

return M
