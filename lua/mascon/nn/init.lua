--- mc.nn: modules. One file a class or family; this one gathers their names.
local module = require "mascon.nn.module"
local activations = require "mascon.nn.activations"
local containers = require "mascon.nn.containers"
local losses = require "mascon.nn.losses"
local norms = require "mascon.nn.norms"

return {
  Module = module.Module,
  Parameter = module.Parameter,
  functional = require "mascon.nn.functional",
  Linear = require "mascon.nn.linear",
  GroupedLinear = require "mascon.nn.grouped_linear",
  Embedding = require "mascon.nn.embedding",
  LayerNorm = norms.LayerNorm, RMSNorm = norms.RMSNorm,
  Dropout = activations.Dropout,
  ReLU = activations.ReLU, GELU = activations.GELU, SiLU = activations.SiLU, Tanh = activations.Tanh,
  Sigmoid = activations.Sigmoid, SwiGLU = activations.SwiGLU,
  Sequential = containers.Sequential, ModuleList = containers.ModuleList,
  CausalSelfAttention = require "mascon.nn.attention",
  Router = require "mascon.nn.router",
  MoE = require "mascon.nn.moe",
  CrossEntropyLoss = losses.CrossEntropyLoss, MSELoss = losses.MSELoss,
}
