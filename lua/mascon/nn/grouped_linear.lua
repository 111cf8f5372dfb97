--- GroupedLinear: the linear layers of G experts, run as one: y_i = x_i W_i^T + b_i over packed rows.
--
-- Semantics and argument names follow Transformer Engine's layer of this name; where the two differ the README
-- says so. The weights are one tensor [G, N, K] (biases [G, N]) whatever the layout: see packed.lua.
local ffi = require "ffi"
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"
local create = require "mascon.create"
local packed = require "mascon.packed"
local nn_module = require "mascon.nn.module"

local C, check, failed = lib.C, lib.check, lib.failed
local raise, show = args.raise, args.show
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save

local GroupedLinear = nn_module.Module:extend "GroupedLinear"

local spec = {
  num_gemms = { "positive", required = true },
  in_features = { "positive", required = true },
  out_features = { "positive", required = true },
  bias = { "boolean", true },
  single_grouped_weight = { "boolean", false },
  single_grouped_bias = { "boolean", false },
  params_dtype = { { "float32", "bfloat16", "float16", "float64" }, "float32" },
  device = { "string" },
  init_method = { "function" },
  return_bias = { "boolean", false },
  fuse_wgrad_accumulation = { "boolean", false },
  delay_wgrad_compute = { "boolean", false },
  save_original_input = { "boolean", false },
  tp_size = { "positive", 1 },
  tp_rank = { "natural", 0 },
  parallel_mode = { { "column", "row" } },
}

local INIT_STD = 0.023 -- Transformer Engine's default

--- mc.nn.GroupedLinear{num_gemms =, in_features =, out_features =, ...}; all options in README and DESIGN.
-- init_method(t) fills one expert's [out, in] weight in place; it is called once per expert, in order.
function GroupedLinear:init(opts)
  local o = args.options("GroupedLinear", opts, spec)
  local n, k = o.out_features, o.in_features
  if o.parallel_mode and o.tp_size > 1 then
    local what = o.parallel_mode == "column" and "out_features" or "in_features"
    if o[what] % o.tp_size ~= 0 then
      raise(("GroupedLinear: %s = %d is not divisible by tp_size = %d"):format(what, o[what], o.tp_size))
    end
    if o.parallel_mode == "column" then n = n / o.tp_size else k = k / o.tp_size end
  end
  if o.tp_rank >= o.tp_size then
    raise(("GroupedLinear: tp_rank = %d, wanted 0 to %d"):format(o.tp_rank, o.tp_size - 1))
  end
  if o.bias and o.tp_size > 1 then
    raise("GroupedLinear: bias = true with tp_size > 1 would add the bias once per rank; use bias = false")
  end
  if o.single_grouped_bias and not o.bias then
    raise("GroupedLinear: single_grouped_bias = true needs bias = true")
  end
  self.num_gemms, self.in_features, self.out_features = o.num_gemms, k, n
  self.options = o
  local layer = { type = "GroupedLinear", num_gemms = o.num_gemms, in_features = k, out_features = n }
  local like = { dtype = o.params_dtype, device = o.device }

  local weight = create.empty({ o.num_gemms, n, k }, like)
  packed.make(weight, {
    count = o.num_gemms, role = "weight", layout = o.single_grouped_weight and "single" or "per_expert", layer = layer,
  })
  self.weight = nn_module.Parameter(weight)
  -- which axis of the packed weight tensor parallelism cuts (1-based): 2 for column, 3 for row
  weight.partition_axis = o.tp_size > 1 and (o.parallel_mode == "column" and 2 or o.parallel_mode == "row" and 3) or nil
  if o.bias then
    local bias = create.zeros({ o.num_gemms, n }, like)
    packed.make(bias, {
      count = o.num_gemms, role = "bias", layout = o.single_grouped_bias and "single" or "per_expert", layer = layer,
    })
    self.bias = nn_module.Parameter(bias)
  end
  self:reset_parameters()
  if o.fuse_wgrad_accumulation then
    weight.main_grad = create.zeros({ o.num_gemms, n, k }, {
      dtype = o.params_dtype == "float64" and "float64" or "float32", device = o.device,
    })
  end
  self._pending = {} -- delayed weight gradients, oldest first
end

--- Draws the weights anew and zeroes the biases, in any layout.
function GroupedLinear:reset_parameters()
  local init = self.options.init_method or function(t) t:normal_(0, INIT_STD) end
  autograd.no_grad(function()
    for i = 0, self.num_gemms - 1 do
      init(self.weight:select(1, i + 1):detach())
    end
    if self.bias then self.bias:zero_() end
  end)
end

-- gl.weight3 is expert 3's weight, whatever the layout.
function GroupedLinear:__field(key)
  if type(key) ~= "string" then return nil end
  local name, digits = key:match "^(%a+)(%d+)$"
  local i = digits and (digits == "0" or digits:sub(1, 1) ~= "0") and tonumber(digits)
  if i and (name == "weight" or name == "bias") and i < self.num_gemms and self._fields[name] then
    return self._fields[name]:member(i)
  end
  return nil
end

function GroupedLinear:extra_repr()
  local layout = self:layout()
  return ("num_gemms = %d, in_features = %d, out_features = %d, bias = %s, layout = %s%s"):format(self.num_gemms,
    self.in_features, self.out_features, tostring(self.bias ~= nil), layout.weight,
    layout.bias and layout.bias ~= layout.weight and "/" .. layout.bias or "")
end

function GroupedLinear:absent_names()
  return not self.bias and { bias = "bias = false" } or {}
end

-- -- layouts -------------------------------------------------------------------------------------------

--- {weight = "single" | "per_expert", bias = ... or nil}
function GroupedLinear:layout()
  return { weight = self.weight._packed.layout, bias = self.bias and self.bias._packed.layout or nil }
end

--- gl:set_layout{weight = "single", bias = "per_expert"}: names change, memory, gradients and optimizer state stay.
function GroupedLinear:set_layout(layout)
  local o = args.options("set_layout", layout, { weight = { "string" }, bias = { "string" } })
  if o.bias and not self.bias then raise("set_layout: the layer has no bias") end
  local before = self:layout()
  if o.weight then packed.set_layout("set_layout", self.weight, o.weight) end
  if o.bias then
    local ok, err = pcall(packed.set_layout, "set_layout", self.bias, o.bias)
    if not ok then
      self.weight._packed.layout = before.weight
      error(err, 0)
    end
  end
  return self
end

--- Expert i (0-based): {weight = view [out, in], bias = view [out] or nil}; always the same tensor objects.
function GroupedLinear:expert(i)
  args.integer("expert: index", i, 0, self.num_gemms - 1)
  return { weight = self.weight:member(i), bias = self.bias and self.bias:member(i) or nil }
end

-- -- the way it runs ----------------------------------------------------------------------------------------

local path_text = ffi.new "char[256]"

--- Which kernels the layer's device runs and why: {forward = "...", dgrad = "...", wgrad = "..."}.
-- @tparam[opt] table opts splits = "host" (a table, or a tensor on the CPU) or "device"; default: as in the last
--   forward, "device" before the first
function GroupedLinear:path(opts)
  local o = args.options("path", opts, { splits = { { "host", "device" } } })
  local host = o.splits == "host" or (o.splits == nil and self._splits_on_host == true)
  local weight, ways = self.weight, {}
  for _, pass in ipairs { "forward", "dgrad", "wgrad" } do
    check(C.mc_grouped_linear_path(pass, C.mc_tensor_device(weight.h), C.mc_tensor_dtype(weight.h), self.num_gemms,
      self.in_features, self.out_features, host and 1 or 0, path_text, ffi.sizeof(path_text)))
    ways[pass] = ffi.string(path_text)
  end
  return ways
end

-- -- splits --------------------------------------------------------------------------------------------

-- m_splits as an int32 or int64 tensor [G]: on x's device, or on the CPU when it was a table: what the host knows, some
-- devices need not read back. Tables are checked here, tensors on a device by the kernel, which alone may read them.
local function to_splits(self, m_splits, rows)
  local g = self.num_gemms
  if tensor.is_tensor(m_splits) then
    local dtype = m_splits.dtype
    if dtype ~= "int32" and dtype ~= "int64" then
      raise(("GroupedLinear: m_splits is a tensor of %s, wanted int32 or int64; make it with dtype = \"int32\"")
        :format(dtype))
    end
    return m_splits
  end
  if type(m_splits) ~= "table" then
    raise(("GroupedLinear: m_splits is %s, wanted a table or an integer tensor of %d row counts")
      :format(show(m_splits), g))
  end
  if #m_splits ~= g then
    raise(("GroupedLinear: m_splits has %d entries, the layer has %d experts"):format(#m_splits, g))
  end
  local buffer, sum = ffi.new("int64_t[?]", g), 0
  for i = 1, g do
    local n = m_splits[i]
    if not args.is_integer(n) or n < 0 then
      raise(("GroupedLinear: m_splits[%d] is %s, wanted an integer of 0 or more"):format(i, show(n)))
    end
    buffer[i - 1] = n
    sum = sum + n
  end
  if sum > rows then
    raise(("GroupedLinear: m_splits sum to %d, x has %d rows"):format(sum, rows))
  end
  local t = create.empty(g, { dtype = "int64", device = "cpu" })
  check(C.mc_write(t.h, buffer, 8 * g))
  return t
end

-- A caller's buffer: 2-D, contiguous, of exactly this shape, dtype and device, and outside any graph.
local function check_buffer(what, t, rows, columns, like)
  tensor.want_tensor("GroupedLinear: " .. what, t)
  local shape = t:shape()
  if #shape ~= 2 or shape[1] ~= rows or shape[2] ~= columns or t.dtype ~= like.dtype or t.device ~= like.device
    or not t:is_contiguous() then
    raise(("GroupedLinear: %s is %s [%s] on %s%s, wanted contiguous %s [%d, %d] on %s"):format(what, t.dtype,
      table.concat(shape, ", "), t.device, t:is_contiguous() and "" or ", not contiguous", like.dtype, rows, columns,
      like.device))
  end
  if t.rg then raise(("GroupedLinear: %s requires a gradient; hand in t:detach()"):format(what)) end
end

-- -- backward ------------------------------------------------------------------------------------------

-- dw = dy^T x per expert, into a fresh tensor or added to (accumulate) or over a given one.
local function wgrad(dw, dy, x, splits, accumulate)
  local st = C.mc_grouped_linear_wgrad(dw.h, dy.h, x.h, splits.h, accumulate and 1 or 0)
  if st ~= 0 then failed(st, "mc_grouped_linear_wgrad", dw, dy, x, splits, accumulate and 1 or 0) end
  return dw
end

-- The weight gradient of one micro-batch, to where it belongs: main_grad when fused, else returned.
local function weight_gradient(layer, dy, x, splits, overwrite)
  local weight = layer.weight
  if not layer.options.fuse_wgrad_accumulation then
    return wgrad(new(), dy, x, splits, false)
  end
  wgrad(weight.main_grad, dy, x, splits, not overwrite)
  weight.grad_added_to_main_grad = true
  local frozen = rawget(weight, "_frozen")
  if frozen then
    for i in pairs(frozen) do weight.main_grad:select(1, i + 1):zero_() end
  end
  return nil
end

local OP = { name = "grouped_linear" }
function OP.backward(node, dy)
  local layer = node.layer
  dy = dy:contiguous()
  local dx, dw, db
  if node[1] then
    dx = node.dgrad_out or new()
    local st = C.mc_grouped_linear_dgrad(dx.h, dy.h, layer.weight.h, node.splits.h)
    if st ~= 0 then failed(st, "mc_grouped_linear_dgrad", dx, dy, layer.weight, node.splits) end
    if node.dgrad_out then dx = dx:detach() end
  end
  if node[2] then
    if layer.options.delay_wgrad_compute then
      -- own handles: the node frees its saved ones when this returns
      local pending = {
        x = node.x:detach(), dy = dy:detach(), splits = node.splits:detach(), overwrite = node.overwrite,
      }
      pending.x.kept, pending.dy.kept, pending.splits.kept = true, true, true
      table.insert(layer._pending, pending)
    else
      dw = weight_gradient(layer, dy, node.x, node.splits, node.overwrite)
    end
  end
  if node[3] then
    db = new()
    local st = C.mc_grouped_linear_bias_grad(db.h, dy.h, node.splits.h, 0)
    if st ~= 0 then failed(st, "mc_grouped_linear_bias_grad", db, dy, node.splits, 0) end
  end
  return dx, dw, db
end

--- With delay_wgrad_compute: computes the oldest pending weight gradient and adds it to .grad (or main_grad). A no-op
-- when nothing is pending or the option is off. {all = true}: every pending one.
function GroupedLinear:backward_dw(opts)
  local o = args.options("backward_dw", opts, { all = { "boolean", false } })
  autograd.no_grad(function()
    repeat
      local p = table.remove(self._pending, 1)
      if not p then return end
      local dw = weight_gradient(self, p.dy, p.x, p.splits, p.overwrite)
      if dw then autograd.deliver(self.weight, dw, nil, true) end
      p.x:free()
      p.dy:free()
      p.splits:free()
    until not o.all
  end)
end

-- -- forward -------------------------------------------------------------------------------------------

local call_spec = {
  is_first_microbatch = { "boolean" }, out = { "any" }, dgrad_out = { "any" },
}

--- y = gl(x, m_splits, opts). x [.., in] of the parameters' dtype, flattened to rows; m_splits: a table of G row
-- counts, or an int32 or int64 tensor [G] on x's device. Rows beyond their sum belong to no expert: zero in a fresh
-- y and dx, untouched in a caller's buffer. opts: is_first_microbatch (true: overwrite main_grad), out [rows, out],
-- dgrad_out [rows, in]. Returns y [.., out]; with return_bias: y without bias, and the biases.
function GroupedLinear:forward(x, m_splits, opts)
  tensor.want_tensor("GroupedLinear: x", x)
  local o = opts and args.options("GroupedLinear", opts, call_spec) or {}
  local weight, bias, k, n = self.weight, self.bias, self.in_features, self.out_features
  local shape = x:shape()
  if #shape == 0 or shape[#shape] ~= k then
    raise(("GroupedLinear: x is [%s], its last axis must be in_features = %d"):format(table.concat(shape, ", "), k))
  end
  if x.dtype ~= weight.dtype then
    raise(("GroupedLinear: x is %s, the parameters are %s; convert one with t:to(\"%s\")"):format(x.dtype, weight.dtype,
      weight.dtype))
  end
  local rows = 1
  for i = 1, #shape - 1 do rows = rows * shape[i] end
  local flat = #shape == 2 and x or x:reshape(rows, k)
  local splits = to_splits(self, m_splits, rows)
  self._splits_on_host = splits.device == "cpu"
  if o.out then check_buffer("out", o.out, rows, n, x) end
  if o.dgrad_out then check_buffer("dgrad_out", o.dgrad_out, rows, k, x) end

  local added = bias and not self.options.return_bias and bias or nil
  local y = o.out and o.out:detach() or new()
  local st = C.mc_grouped_linear(y.h, flat.h, weight.h, added and added.h or nil, splits.h)
  if st ~= 0 then failed(st, "mc_grouped_linear", y, flat, weight, added, splits) end
  if tape.on and (flat.rg or weight.rg or (added and added.rg)) then
    local node = record(y, OP, flat, weight, added)
    node.layer = self
    node.x, node.splits = save(node, flat), save(node, splits)
    save(node, weight) -- noticed when it is written before backward
    node.overwrite, node.dgrad_out = o.is_first_microbatch == true, o.dgrad_out
  end
  if #shape ~= 2 then
    shape[#shape] = n
    y = y:view(shape)
  end
  if not self.options.return_bias then return y end
  if not bias then return y, nil end
  if bias._packed.layout == "single" then return y, bias end
  local list = {}
  for i = 0, self.num_gemms - 1 do list[i + 1] = bias:member(i) end
  return y, list
end

return GroupedLinear
