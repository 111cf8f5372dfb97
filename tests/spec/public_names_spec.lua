-- The public names: fixed once given, so a name that goes away or changes its kind is a failing test.
local mc = require "mascon"

local function words(text)
  local list = {}
  for w in text:gmatch "%S+" do list[#list + 1] = w end
  return list
end

local FUNCTIONS = [[
    tensor empty rand zeros ones randn full arange cat stack where matmul allclose equal no_grad scope keep
    manual_seed get_rng_state set_rng_state save load randint zeros_like ones_like full_like empty_like memory_stats
    collect_garbage get_num_threads set_num_threads add sub mul div pow maximum minimum exp log sqrt rsqrt sin cos
    tanh sigmoid relu gelu silu swiglu abs neg sign floor ceil round isnan isfinite sum mean max min softmax
    log_softmax topk argmax eq ne lt le gt ge is_tensor set_default_device get_default_device allow_tf32]]
local METHODS = [[
    shape size dim numel item totable to clone contiguous view reshape transpose narrow select copy_ fill_ add mul
    sub div sum mean max min requires_grad_ backward detach permute unsqueeze squeeze expand gather argmax topk eq
    ne lt le gt ge add_ sub_ mul_ div_ register_hook data index_select zero_ uniform_ normal_ amax amin prod cumsum
    softmax clamp free t flatten is_contiguous storage_id version]]
local FIELDS = "dtype device grad requires_grad is_leaf"
local ROOMS = {
  nn = [[
    Module Parameter GroupedLinear Linear Embedding LayerNorm RMSNorm Dropout Sequential ModuleList SwiGLU ReLU GELU
    SiLU CausalSelfAttention Router MoE functional]],
  optim = "SGD Adam AdamW clip_grad_norm_ schedule",
  checkpoint = "load_into plan inspect verify diff",
  cuda = "is_available device_count synchronize info memory_stats graph profile",
  autograd = "Function grad",
  data = "kjv bytes split Windows windows_in_order bpe text DeviceWindows",
  train = "Logger Progress Checkpoints",
}
local MODULE_METHODS = [[
    forward parameters named_parameters state_dict load_state_dict train eval to zero_grad named_modules apply
    register_buffer]]
local GROUPED_METHODS = "set_layout layout expert backward_dw path"
local OPTIMIZER_METHODS = "step zero_grad state_dict load_state_dict"
local FUNCTIONAL = "cross_entropy attention rope rms_norm layer_norm embedding linear dropout"

local function callable(v)
  local mt = type(v) == "table" and getmetatable(v)
  return type(v) == "function" or (mt and mt.__call ~= nil)
end

describe("public names", function()
  it("of mc are functions", function()
    for _, name in ipairs(words(FUNCTIONS)) do assert.is_true(callable(mc[name]), "mc." .. name) end
  end)
  it("of tensors are methods and fields", function()
    local t = mc.ones(2, { requires_grad = true })
    for _, name in ipairs(words(METHODS)) do assert.is_true(callable(t[name]), "t:" .. name) end
    t:sum():backward()
    for _, name in ipairs(words(FIELDS)) do assert.is_true(t[name] ~= nil, "t." .. name) end
  end)
  for room, names in pairs(ROOMS) do
    it("of mc." .. room .. " are there", function()
      for _, name in ipairs(words(names)) do assert.is_true(mc[room][name] ~= nil, ("mc.%s.%s"):format(room, name)) end
    end)
  end
  it("of modules, GroupedLinear and optimizers are methods", function()
    local gl = mc.nn.GroupedLinear { num_gemms = 2, in_features = 2, out_features = 2 }
    for _, name in ipairs(words(MODULE_METHODS .. " " .. GROUPED_METHODS)) do
      assert.is_true(callable(gl[name]), "m:" .. name)
    end
    local opt = mc.optim.AdamW { params = gl, lr = 0.1 }
    for _, name in ipairs(words(OPTIMIZER_METHODS)) do assert.is_true(callable(opt[name]), "opt:" .. name) end
    for _, name in ipairs(words(FUNCTIONAL)) do
      assert.is_true(callable(mc.nn.functional[name]), "mc.nn.functional." .. name)
    end
  end)
  it("are the only thing that the library defines: no globals", function()
    for _, name in ipairs { "mascon", "mc", "torch", "nn" } do assert.is_nil(rawget(_G, name), name) end
  end)
  it("of the C library are all there: every function of the cdef resolves", function()
    local lib = require "mascon.lib"
    local n = 0
    for name in require("mascon.cdef"):gsub("/%*.-%*/", ""):gmatch "[%s%*](mc_[%w_]+)%s*%(" do
      n = n + 1
      assert.is_true(pcall(function() return lib.C[name] end), name)
    end
    assert.is_true(n > 100)
  end)
  it("of dtypes are the design's", function()
    for _, dtype in ipairs(words [[float64 float32 float16 bfloat16 int64 int32 uint8 bool float8_e4m3fn float8_e5m2
      float8_e8m0fnu]]) do
      assert.equal(dtype, mc.empty(1, { dtype = dtype }).dtype)
    end
  end)
end)
