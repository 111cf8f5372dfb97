--- Adam (Kingma & Ba 2015, alg. 1) and AdamW (Loshchilov & Hutter 2019, alg. 2).
local class = require "mascon.class"
local handles = require "mascon.optim.handles"
local lib = require "mascon.lib"
local Optimizer = require "mascon.optim.optimizer"

local C = lib.C
local array = handles.array

local function is_rate(v) return type(v) == "number" and v >= 0 and v < math.huge end
local function is_betas(v)
  if type(v) ~= "table" or #v ~= 2 then return false end
  for i = 1, 2 do
    if type(v[i]) ~= "number" or not (v[i] >= 0 and v[i] < 1) then return false end
  end
  return true
end

local function is_state_dtype(v) return v == "float32" or v == "bfloat16" end

local function spec_of(weight_decay)
  return {
    lr = { is_rate, 1e-3, want = "a number of 0 or more" },
    betas = { is_betas, { 0.9, 0.999 }, want = "a table of two numbers from 0 to below 1" },
    eps = { is_rate, 1e-8, want = "a number of 0 or more" },
    weight_decay = { is_rate, weight_decay, want = "a number of 0 or more" },
    state_dtype = { is_state_dtype, "float32", want = '"float32" or "bfloat16"' },
  }
end

local BUFFERS = { "exp_avg", "exp_avg_sq" }

local function define(name, weight_decay, decoupled)
  local Class = class.class(name, Optimizer)
  Class.what = name
  Class.spec = spec_of(weight_decay)
  Class.hyper_options = { lr = true, betas = true, eps = true, weight_decay = true }
  Class.hyper = { "lr", "beta1", "beta2", "eps", "weight_decay" }

  function Class:flatten(o) -- luacheck: ignore 212
    return { lr = o.lr, beta1 = o.betas[1], beta2 = o.betas[2], eps = o.eps, weight_decay = o.weight_decay }
  end
  function Class:buffers() return BUFFERS end -- luacheck: ignore 212


  function Class:moment_dtype(param)
    if self.options.state_dtype == "bfloat16" and param.dtype == "bfloat16" then return "bfloat16" end
    return Optimizer.moment_dtype(self, param)
  end

  function Class:update(b, v, lr, count, scale) -- luacheck: ignore 212
    local n = b.n
    local st = C.mc_adam_step_many(n, array(1, b.param, n), array(2, b.exp_avg, n), array(3, b.exp_avg_sq, n),
      array(4, b.master, n), array(5, b.grad, n), count.h, lr.h, scale and scale.h, v.beta1, v.beta2, v.eps,
      v.weight_decay, decoupled)
    if st ~= 0 then handles.raise(n, b.param, b.exp_avg, b.exp_avg_sq, b.master, b.grad) end
  end
  return Class
end

-- state_dtype = "bfloat16" keeps the moments of bfloat16 parameters (only of those) in bfloat16, in half the memory.
-- They are computed in float32 and rounded to nearest once a step. With 8 significant bits exp_avg_sq stands still
-- where a step would change it by less than 1 / 512 of itself, as its decay does for betas[2] near 1: take 0.99 or
-- less.
return {
  --- mc.optim.Adam{params =, lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0, master_weights = false,
  -- state_dtype = "float32"}
  Adam = define("Adam", 0, 0),
  --- mc.optim.AdamW{params =, lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0.01, master_weights = false,
  -- state_dtype = "float32"}
  AdamW = define("AdamW", 0.01, 1),
}
