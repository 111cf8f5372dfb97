--- Writes the golden file of what v1_single.h5 and v1_per_expert.h5 do not have: views of the other layout, layers of
-- 16-bit floats with weights and biases in different layouts, tied tensors, keys that must be escaped, a table of many
-- values, a long text, NaN payloads and a state of the random numbers.
--
--   scripts/mascon tests/golden/make_views.lua
--
-- Run once; golden_spec.lua knows every value by itself. In the layers of 12 experts, [3, 4] each, an element is
-- expert * 16 + row * 4 + column, in the biases expert * 16 + row: exact in bfloat16.
local ffi = require "ffi"
local mc = require "mascon"

local path = (debug.getinfo(1, "S").source:match "^@(.*)/" or ".") .. "/v1_views.h5"
assert(not io.open(path), path .. " is there already")

local G, N, K = 12, 3, 4

local function layer(dtype, weight)
  local gl = mc.nn.GroupedLinear { num_gemms = G, in_features = K, out_features = N, params_dtype = dtype,
    single_grouped_weight = weight == "single", single_grouped_bias = weight ~= "single" }
  mc.no_grad(function()
    for e = 0, G - 1 do
      local rows, bias = {}, {}
      for r = 1, N do
        rows[r], bias[r] = {}, e * 16 + r - 1
        for c = 1, K do rows[r][c] = e * 16 + (r - 1) * 4 + c - 1 end
      end
      gl:expert(e).weight:copy_(mc.tensor(rows, { dtype = dtype }))
      gl:expert(e).bias:copy_(mc.tensor(bias, { dtype = dtype }))
    end
  end)
  return gl
end

local payloads = mc.empty(4, { dtype = "float32" })
local bits = ffi.cast("uint32_t *", payloads:data())
bits[0], bits[1], bits[2], bits[3] = 0x7f800001, 0xffdeadbf, 0x80000000, 0xff800000

local many = { inf = math.huge, ninf = -math.huge, nan = 0 / 0, minus_zero = -0.0, large = 2 ^ 53, yes = true,
  text = "of \"many\"\n" }
for i = 1, 33 do many["v" .. i] = i / 8 end

mc.manual_seed(5)
mc.rand(7)
local rng = mc.get_rng_state() -- before the layers draw
local both = mc.arange(6):view(2, 3)
mc.save(path, {
  bfloat16 = layer("bfloat16", "per_expert"):state_dict(), float16 = layer("float16", "single"):state_dict(),
  payloads = payloads, many = many, long = ("0123456789"):rep(300), tied = { a = both, b = both },
  rng = rng,
  keys = { ["a/b"] = mc.tensor(1), [""] = mc.tensor(2), ["#x"] = mc.tensor(3), ["%y"] = mc.tensor(4),
    ["m.weight"] = mc.tensor(5), ["m.weight.weight"] = mc.tensor(6), ["\195\188 \1"] = mc.tensor(7),
    [12] = mc.tensor(8), ["12"] = mc.tensor(9), ["a..b"] = "x", type = "y" },
}, { views = true })
print(path)
