local helper = require "helper"
local mc = require "mascon"

local raises = helper.raises

local G, K, N = 5, 6, 4
local SPLITS = { 3, 0, 1, 5, 0 } -- 9 rows

local function layer(opts)
  local o = { num_gemms = G, in_features = K, out_features = N }
  for k, v in pairs(opts or {}) do o[k] = v end
  mc.manual_seed(5)
  local gl = mc.nn.GroupedLinear(o)
  if gl.bias then mc.no_grad(function() gl.bias:copy_(mc.randn({ G, N }, { dtype = gl.bias.dtype })) end) end
  return gl
end

local LAYOUTS = { { false, false }, { false, true }, { true, false }, { true, true } }
local function each_layout(fn)
  for _, l in ipairs(LAYOUTS) do
    fn { single_grouped_weight = l[1], single_grouped_bias = l[2] }
  end
end
local function with(base, more)
  local out = {}
  for k, v in pairs(base) do out[k] = v end
  for k, v in pairs(more) do out[k] = v end
  return out
end

-- y, dx, dW and db by one dense product per expert.
local function by_experts(gl, x, dy, splits)
  local at, y = 1, mc.zeros({ x:size(1), N }, { dtype = x.dtype })
  local dx, dw, db = mc.zeros_like(x), mc.zeros_like(gl.weight), mc.zeros({ G, N }, { dtype = x.dtype })
  mc.no_grad(function()
    for i, m in ipairs(splits) do
      local e = gl:expert(i - 1)
      local rows, grads = x:detach():narrow(1, at, m), dy:narrow(1, at, m)
      if m > 0 then
        y:narrow(1, at, m):copy_(mc.matmul(rows, e.weight:t()) + (e.bias or 0))
        dx:narrow(1, at, m):copy_(mc.matmul(grads, e.weight))
        dw[i]:copy_(mc.matmul(grads:t(), rows))
        db[i]:copy_(grads:sum(1))
      end
      at = at + m
    end
  end)
  return y, dx, dw, db
end

describe("GroupedLinear", function()
  it("computes what one linear layer per expert computes, in every layout, dtype and kind of splits", function()
    local close = { float64 = 1e-12, float32 = 1e-5, bfloat16 = 3e-2, float16 = 4e-3 }
    for dtype, tolerance in pairs(close) do
      each_layout(function(layout)
        for _, splits in ipairs { SPLITS, { 0, 0, 0, 0, 9 }, { 9, 0, 0, 0, 0 }, { 2, 2, 2, 2, 1 } } do
          for _, form in ipairs { "table", "int32", "int64" } do
            local gl = layer(with(layout, { params_dtype = dtype }))
            local x = mc.randn({ 9, K }, { dtype = dtype, requires_grad = true })
            local dy = mc.randn({ 9, N }, { dtype = dtype })
            local y = gl(x, form == "table" and splits or mc.tensor(splits, { dtype = form }))
            y:backward(dy)
            local ey, edx, edw, edb = by_experts(gl, x, dy, splits)
            local tol = { rtol = tolerance, atol = tolerance }
            assert.is_true(mc.allclose(ey, y, tol))
            assert.is_true(mc.allclose(edx, x.grad, tol))
            assert.is_true(mc.allclose(edw, gl.weight.grad, tol))
            assert.is_true(mc.allclose(edb, gl.bias.grad, tol))
          end
        end
      end)
    end
  end)

  it("gives every parameter a gradient in every layout, under its registered names", function()
    each_layout(function(layout)
      local gl = layer(layout)
      gl(mc.randn(10, K), { 2, 2, 2, 2, 2 }):sum():backward()
      local n = 0
      for name, p in gl:named_parameters() do
        n = n + 1
        assert.is_true(p.grad:abs():sum():item() > 0, name)
      end
      assert.equal((layout.single_grouped_weight and 1 or G) + (layout.single_grouped_bias and 1 or G), n)
    end)
  end)

  it("names parameters by layout, in numeric order", function()
    local gl = mc.nn.GroupedLinear { num_gemms = 11, in_features = 2, out_features = 3 }
    local names = {}
    for name in gl:named_parameters() do names[#names + 1] = name end
    assert.equal("weight0", names[1])
    assert.equal("weight10", names[11])
    assert.equal("bias0", names[12])
    assert.equal(22, #names)
    gl:set_layout { weight = "single" }
    names = {}
    for name in gl:named_parameters() do names[#names + 1] = name end
    assert.same({ "weight", "bias0" }, { names[1], names[2] })
    assert.same({ weight = "single", bias = "per_expert" }, gl:layout())
  end)

  it("changes its layout without moving memory, gradients or identity", function()
    local gl = layer()
    local member = gl:expert(3).weight
    assert.equal(member, gl.weight3)
    gl(mc.randn(9, K), SPLITS):sum():backward()
    local grad, id = gl.weight.grad, gl.weight:storage_id()
    gl:set_layout { weight = "single", bias = "single" }
    assert.equal(grad, gl.weight.grad)
    assert.equal(id, gl.weight:storage_id())
    assert.equal(member, gl:expert(3).weight)
    assert.is_true(mc.equal(member.grad, gl.weight.grad[4]))
    gl:set_layout { weight = "per_expert" }
    assert.equal(member, gl:parameters()[4])
    raises("layout \"stacked\"; wanted \"single\" or \"per_expert\"", gl.set_layout, gl, { weight = "stacked" })
    raises("set_layout: unknown option wieght", gl.set_layout, gl, { wieght = "single" })
  end)

  it("forwards a member's grad to the slice of the one gradient", function()
    local gl = layer()
    local w = gl:expert(2).weight
    assert.is_nil(w.grad)
    gl(mc.randn(9, K), SPLITS):sum():backward()
    assert.is_true(mc.equal(w.grad, gl.weight.grad[3]))
    w.grad = nil
    assert.equal(0, gl.weight.grad[3]:abs():sum():item())
    assert.is_true(gl.weight.grad[1]:abs():sum():item() > 0)
    w.grad = mc.ones(N, K)
    assert.equal(N * K, gl.weight.grad[3]:sum():item())
    gl:zero_grad()
    assert.is_nil(gl.weight.grad)
    assert.is_nil(w.grad)
  end)

  it("lets a member be used in a graph of its own", function()
    local gl = layer()
    local w = gl:expert(1).weight;
    (w * w):sum():backward()
    assert.is_true(mc.allclose(gl.weight.grad[2], w:detach() * 2))
    assert.equal(0, gl.weight.grad[1]:abs():sum():item())
  end)

  it("trains only the experts that are not frozen, and will not hide the difference in one name", function()
    local gl = layer()
    gl:expert(3).weight:requires_grad_(false)
    gl(mc.randn(9, K), SPLITS):sum():backward()
    assert.equal(0, gl.weight.grad[4]:abs():sum():item())
    assert.is_true(gl.weight.grad[1]:abs():sum():item() > 0)
    raises("experts differ in requires_grad", gl.set_layout, gl, { weight = "single" })
    gl:expert(3).weight:requires_grad_(true)
    gl:set_layout { weight = "single" }
    gl.weight:requires_grad_(false)
    assert.is_false(gl:expert(0).weight.requires_grad)
  end)

  it("accepts zero rows in all: y is empty, dW and db are exact zeros", function()
    local gl = layer()
    local x = mc.zeros({ 0, K }, { requires_grad = true })
    gl(x, { 0, 0, 0, 0, 0 }):backward(mc.zeros(0, N))
    assert.equal(0, gl.weight.grad:abs():sum():item())
    assert.equal(0, gl.bias.grad:abs():sum():item())
    assert.same({ 0, K }, x.grad:shape())
  end)

  it("keeps rows beyond the splits out of everything", function()
    local gl = layer()
    local nan = 0 / 0
    local x, dy = mc.randn(12, K), mc.randn(12, N)
    x:narrow(1, 10, 3):fill_(nan)
    dy:narrow(1, 10, 3):fill_(nan)
    x:requires_grad_(true)
    local y = gl(x, SPLITS)
    assert.equal(0, y:narrow(1, 10, 3):abs():sum():item())
    y:backward(dy)
    assert.equal(0, x.grad:narrow(1, 10, 3):abs():sum():item())
    for _, t in ipairs { gl.weight.grad, gl.bias.grad, x.grad, y:detach() } do
      assert.equal(0, t:isnan():sum():item())
    end
  end)

  it("writes into the caller's buffers and leaves the rest of them alone", function()
    local gl = layer()
    local x = mc.randn(12, K, { requires_grad = true })
    local out, dgrad_out = mc.full({ 12, N }, 7), mc.full({ 12, K }, 7)
    local y = gl(x, SPLITS, { out = out, dgrad_out = dgrad_out })
    assert.equal(out:storage_id(), y:storage_id())
    assert.equal(7 * 3 * N, out:narrow(1, 10, 3):sum():item())
    y:sum():backward()
    assert.equal(7 * 3 * K, dgrad_out:narrow(1, 10, 3):sum():item())
    assert.is_true(mc.equal(x.grad, dgrad_out))
    raises(("out is float32 [12, 5] on %s, wanted contiguous float32 [12, 4] on %s"):format(x.device, x.device), gl, x,
      SPLITS, { out = mc.zeros(12, 5) })
    raises("out is bfloat16", gl, x, SPLITS, { out = mc.zeros(12, N, { dtype = "bfloat16" }) })
    raises("not contiguous", gl, x, SPLITS, { out = mc.zeros(N, 12):t() })
    raises("out requires a gradient", gl, x, SPLITS, { out = mc.zeros(12, N, { requires_grad = true }) })
    raises("dgrad_out is float32 [9, 6]", gl, x, SPLITS, { dgrad_out = mc.zeros(9, K) })
  end)

  it("takes x of any number of axes", function()
    local gl = layer()
    local x = mc.randn(3, 3, K)
    assert.same({ 3, 3, N }, gl(x, SPLITS):shape())
    assert.is_true(mc.equal(gl(x, SPLITS):view(9, N), gl(x:view(9, K), SPLITS)))
  end)

  it("returns the bias instead of adding it when asked", function()
    each_layout(function(layout)
      local plain, apart = layer(layout), layer(with(layout, { return_bias = true }))
      local x = mc.randn(9, K)
      local y, bias = apart(x, SPLITS)
      local no_bias = layer(with(layout, { bias = false, single_grouped_bias = false }))
      assert.is_true(mc.equal(y, no_bias(x, SPLITS)))
      if layout.single_grouped_bias then
        assert.equal(apart.bias, bias)
      else
        assert.equal(G, #bias)
        assert.equal(apart:expert(1).bias, bias[2])
      end
      assert.is_false(mc.equal(y, plain(x, SPLITS)))
    end)
  end)

  it("accumulates the weight gradient into main_grad when fused", function()
    each_layout(function(layout)
      for _, dtype in ipairs { "float32", "bfloat16" } do
        local plain = layer(with(layout, { params_dtype = dtype }))
        local fused = layer(with(layout, { params_dtype = dtype, fuse_wgrad_accumulation = true }))
        assert.equal("float32", fused.weight.main_grad.dtype)
        local x = mc.randn({ 9, K }, { dtype = dtype })
        plain(x, SPLITS):sum():backward()
        fused(x, SPLITS, { is_first_microbatch = true }):sum():backward()
        assert.is_nil(fused.weight.grad)
        local tol = { rtol = dtype == "float32" and 1e-6 or 1e-2, atol = dtype == "float32" and 1e-6 or 1e-2 }
        assert.is_true(mc.allclose(plain.weight.grad, fused.weight.main_grad, tol))
        fused(x, SPLITS, { is_first_microbatch = false }):sum():backward()
        assert.is_true(mc.allclose(plain.weight.grad * 2, fused.weight.main_grad, tol))
        assert.is_true(mc.equal(fused:expert(3).weight.main_grad, fused.weight.main_grad[4]))
        fused(x, SPLITS, { is_first_microbatch = true }):sum():backward()
        assert.is_true(mc.allclose(plain.weight.grad, fused.weight.main_grad, tol))
        assert.is_true(mc.allclose(plain.bias.grad * 3, fused.bias.grad, tol)) -- a bias is never fused
        fused:zero_grad()
        assert.equal(0, fused.weight.main_grad:abs():sum():item())
      end
    end)
  end)

  it("delays the weight gradient until backward_dw, first in first out, and accumulates", function()
    each_layout(function(layout)
      local plain, late = layer(layout), layer(with(layout, { delay_wgrad_compute = true }))
      local x1, x2 = mc.randn(9, K), mc.randn(9, K)
      for _, x in ipairs { x1, x2 } do
        local leaf = mc.keep(x:clone()):requires_grad_(true)
        late(leaf, SPLITS):sum():backward()
        assert.is_true(leaf.grad ~= nil)
      end
      assert.is_nil(late.weight.grad)
      plain(x1, SPLITS):sum():backward()
      late:backward_dw()
      assert.is_true(mc.equal(plain.weight.grad, late.weight.grad))
      plain(x2, SPLITS):sum():backward()
      late:backward_dw()
      assert.is_true(mc.allclose(plain.weight.grad, late.weight.grad))
      assert.is_true(mc.equal(plain.bias.grad, late.bias.grad))
      local before = late.weight.grad:clone()
      late:backward_dw()
      assert.is_true(mc.equal(before, late.weight.grad))
    end)
  end)

  it("is not freed by its members", function()
    local gl = layer()
    raises("free: the tensor is a member of a packed parameter", function() gl:expert(0).weight:free() end)
    assert.equal("float64", gl:to("float64"):expert(0).weight.dtype)
  end)
  it("follows a move to float64 and back", function()
    local gl = layer { fuse_wgrad_accumulation = true, bias = false }
    for _, dtype in ipairs { "float64", "bfloat16", "float32" } do
      gl:to(dtype)
      gl(mc.ones({ 9, K }, { dtype = dtype }), SPLITS):sum():backward()
      assert.equal(dtype == "float64" and "float64" or "float32", gl.weight.main_grad.dtype)
      assert.equal(9 * K * N, gl.weight.main_grad:sum():item())
      gl:zero_grad()
    end
  end)
  it("runs all pending weight gradients with {all = true}, fused or not", function()
    local late = layer { delay_wgrad_compute = true, fuse_wgrad_accumulation = true }
    local plain, x = layer(), mc.randn(9, K)
    for _ = 1, 3 do
      late(x, SPLITS):sum():backward()
      plain(x, SPLITS):sum():backward()
    end
    late:backward_dw { all = true }
    assert.is_true(mc.allclose(plain.weight.grad, late.weight.main_grad))
    assert.is_nil(late.weight.grad)
  end)

  it("accepts save_original_input, which changes nothing without quantisers", function()
    local a, b, x = layer(), layer { save_original_input = true }, mc.randn(9, K)
    a(x, SPLITS):sum():backward()
    b(x, SPLITS):sum():backward()
    assert.is_true(mc.equal(a.weight.grad, b.weight.grad))
  end)

  it("cuts shapes by tensor parallelism: columns cut out_features, rows in_features", function()
    local o = { num_gemms = 2, in_features = 8, out_features = 12, bias = false, tp_size = 4, parallel_mode = "column" }
    local column = mc.nn.GroupedLinear(o)
    assert.same({ 2, 3, 8 }, column.weight:shape())
    assert.equal(2, column.weight.partition_axis)
    o.parallel_mode = "row"
    assert.same({ 2, 12, 2 }, mc.nn.GroupedLinear(o).weight:shape())
    o.in_features = 9
    raises("in_features = 9 is not divisible by tp_size = 4", mc.nn.GroupedLinear, o)
    o.in_features, o.bias = 8, true
    raises("bias = true with tp_size > 1", mc.nn.GroupedLinear, o)
    o.bias, o.tp_rank = false, 4
    raises("tp_rank = 4, wanted 0 to 3", mc.nn.GroupedLinear, o)
  end)

  it("calls init_method once per expert, in order, in both layouts", function()
    each_layout(function(layout)
      local seen = {}
      local gl = mc.nn.GroupedLinear(with(layout, {
        num_gemms = 3, in_features = 2, out_features = 4,
        init_method = function(t)
          seen[#seen + 1] = t:shape()
          t:fill_(#seen)
        end,
      }))
      assert.same({ { 4, 2 }, { 4, 2 }, { 4, 2 } }, seen)
      assert.equal(3, gl:expert(2).weight:amin():item())
    end)
    mc.manual_seed(1)
    local a = mc.nn.GroupedLinear { num_gemms = 3, in_features = 2, out_features = 4 }
    mc.manual_seed(1)
    local b = mc.nn.GroupedLinear { num_gemms = 3, in_features = 2, out_features = 4, single_grouped_weight = true }
    assert.is_true(mc.equal(a.weight, b.weight))
  end)

  it("keeps its parameter objects through to(), and its members follow", function()
    local gl = layer()
    local w, m = gl.weight, gl:expert(2).weight
    gl:to "bfloat16"
    assert.equal(w, gl.weight)
    assert.equal("bfloat16", m.dtype)
    assert.equal(w:storage_id(), m:storage_id())
    assert.is_true(mc.equal(m, w[3]))
  end)

  it("runs on another device without reading the splits on the host", function()
    local a, b = layer { device = "cpu" }, layer { device = "cpu" }
    b:to "fake"
    local x, dy = mc.randn(9, K, { device = "cpu" }), mc.randn(9, N, { device = "cpu" })
    local xa, xb = mc.keep(x:clone()):requires_grad_(true), mc.keep(x:to "fake"):requires_grad_(true)
    a(xa, SPLITS):backward(dy)
    b(xb, mc.tensor(SPLITS, { dtype = "int32", device = "fake" })):backward(dy:to "fake")
    assert.is_true(mc.equal(a.weight.grad, b.weight.grad:to "cpu"))
    assert.is_true(mc.equal(xa.grad, xb.grad:to "cpu"))
  end)
end)

describe("GroupedLinear given bad input", function()
  local gl, x = layer(), mc.zeros(9, K)
  it("names what came and what was wanted, and changes nothing", function()
    local before = gl.weight:detach():clone()
    raises("GroupedLinear: x is [9, 7], its last axis must be in_features = 6", gl, mc.zeros(9, 7), SPLITS)
    raises("GroupedLinear: x is float64, the parameters are float32; convert one", gl,
      mc.zeros(9, K, { dtype = "float64" }), SPLITS)
    raises("GroupedLinear: m_splits has 4 entries, the layer has 5 experts", gl, x, { 3, 0, 1, 5 })
    raises("GroupedLinear: m_splits[2] is -1, wanted an integer of 0 or more", gl, x, { 3, -1, 1, 5, 0 })
    raises("GroupedLinear: m_splits[3] is 1.5, wanted an integer", gl, x, { 3, 0, 1.5, 4, 0 })
    raises("GroupedLinear: m_splits sum to 10, x has 9 rows", gl, x, { 3, 0, 1, 5, 1 })
    raises("m_splits is a tensor of float32, wanted int32 or int64; make it with dtype = \"int32\"", gl, x,
      mc.tensor(SPLITS))
    raises("m_splits is nil, wanted a table or an integer tensor of 5 row counts", gl, x)
    local function ints(t) return mc.tensor(t, { dtype = "int64" }) end
    raises("m_splits has 4 entries", gl, x, ints { 3, 0, 1, 5 })
    raises("m_splits[1] is -1", gl, x, ints { 3, -1, 1, 5, 0 })
    raises("m_splits sum to 10, x has 9 rows", gl, x, ints { 3, 0, 1, 5, 1 })
    raises("GroupedLinear: unknown option fuse", gl, x, SPLITS, { fuse = true })
    assert.is_true(mc.equal(before, gl.weight))
    assert.is_nil(gl.weight.grad)
  end)
  it("checks the constructor's options", function()
    raises("GroupedLinear: option num_gemms is missing, wanted a positive integer", mc.nn.GroupedLinear, {
      in_features = 2, out_features = 2 })
    raises("GroupedLinear: option num_gemms is 0, wanted a positive integer", mc.nn.GroupedLinear, {
      num_gemms = 0, in_features = 2, out_features = 2 })
    raises("GroupedLinear: unknown option n_gemms; there are: bias, delay_wgrad_compute", mc.nn.GroupedLinear, {
      n_gemms = 2 })
    raises("option parallel_mode is \"colum\", wanted one of \"column\", \"row\"", mc.nn.GroupedLinear, {
      num_gemms = 2, in_features = 2, out_features = 2, parallel_mode = "colum" })
    raises("single_grouped_bias = true needs bias = true", mc.nn.GroupedLinear, {
      num_gemms = 2, in_features = 2, out_features = 2, bias = false, single_grouped_bias = true })
  end)
  it("is blamed at the user's line and names the way to the layer", function()
    local Net = mc.nn.Module:extend "Net"
    function Net:init() self.experts = layer() end
    function Net:forward(t) return self.experts(t, SPLITS) end
    local net = Net()
    local ok, err = pcall(function() return net(mc.zeros(9, 7)) end)
    assert.is_false(ok)
    assert.is_truthy(err:find("experts (GroupedLinear): ", 1, true), err)
    assert.is_truthy(err:find("grouped_linear_spec.lua:", 1, true), err)
  end)
end)

describe("a grouped tensor", function()
  it("has uniform members that are views of its memory", function()
    local data = mc.arange(24):view(3, 2, 4)
    local gt = mc.GroupedTensor { data = data }
    assert.equal(3, gt.num_tensors)
    assert.is_true(gt:all_same_first_dim())
    assert.equal(gt:member(1), gt:member(1))
    gt:member(1):fill_(-1)
    assert.equal(-8, data[2]:sum():item())
    assert.same({ 2, 4 }, gt:member_shape(2))
    assert.equal(data:storage_id(), gt:split()[3]:storage_id())
  end)
  it("has ragged members by row counts from a table or a tensor, zeros among them", function()
    local data = mc.arange(12):view(6, 2)
    for _, dims in ipairs { { 2, 0, 3 }, mc.tensor({ 2, 0, 3 }, { dtype = "int32" }) } do
      local gt = mc.GroupedTensor { data = data, first_dims = dims }
      assert.same({ 0, 2, 2, 5 }, gt.offsets:totable())
      assert.same({ 0, 2 }, gt:member(1):shape())
      assert.same({ { 4, 5 }, { 6, 7 }, { 8, 9 } }, gt:member(2):totable())
    end
  end)
  it("is allocated from shapes that differ in the first axis only", function()
    local gt = mc.GroupedTensor.empty({ { 2, 3 }, { 4, 3 } }, { dtype = "bfloat16" })
    assert.same({ 6, 3 }, gt.data:shape())
    assert.same({ 2, 2, 3 }, mc.GroupedTensor.empty({ { 2, 3 }, { 2, 3 } }).data:shape())
    raises("shape 2 is [4, 2], shape 1 is [2, 3]; only the first axis may differ", mc.GroupedTensor.empty,
      { { 2, 3 }, { 4, 2 } })
  end)
  it("never copies: data that is not contiguous is refused, as are sizes that do not fit", function()
    raises("is not contiguous", mc.GroupedTensor, { data = mc.zeros(3, 4):t() })
    raises("first_dims sum to 7, data has 6 rows", mc.GroupedTensor, { data = mc.zeros(6, 2), first_dims = { 3, 4 } })
    raises("first_dims[2]: -1 is out of range", mc.GroupedTensor, { data = mc.zeros(6, 2), first_dims = { 3, -1 } })
  end)
end)
