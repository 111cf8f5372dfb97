--- Adam (Kingma & Ba 2015, alg. 1) and AdamW (Loshchilov & Hutter 2019, alg. 2).
local class = require "mascon.class"
local lib = require "mascon.lib"
local Optimizer = require "mascon.optim.optimizer"

local C = lib.C

local function is_rate(v) return type(v) == "number" and v >= 0 and v < math.huge end
local function is_betas(v)
  if type(v) ~= "table" or #v ~= 2 then return false end
  for i = 1, 2 do
    if type(v[i]) ~= "number" or not (v[i] >= 0 and v[i] < 1) then return false end
  end
  return true
end

local function spec_of(weight_decay)
  return {
    lr = { is_rate, 1e-3, want = "a number of 0 or more" },
    betas = { is_betas, { 0.9, 0.999 }, want = "a table of two numbers from 0 to below 1" },
    eps = { is_rate, 1e-8, want = "a number of 0 or more" },
    weight_decay = { is_rate, weight_decay, want = "a number of 0 or more" },
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

  function Class:update(param, grad, state, v, lr, count, scale) -- luacheck: ignore 212
    local st = C.mc_adam_step(param.h, state.exp_avg.h, state.exp_avg_sq.h, state.master and state.master.h, grad.h,
      count.h, lr.h, scale and scale.h, v.beta1, v.beta2, v.eps, v.weight_decay, decoupled)
    if st ~= 0 then lib.raise_last(param, grad) end
  end
  return Class
end

return {
  --- mc.optim.Adam{params =, lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0, master_weights = false}
  Adam = define("Adam", 0, 0),
  --- mc.optim.AdamW{params =, lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0.01, master_weights = false}
  AdamW = define("AdamW", 0.01, 1),
}
