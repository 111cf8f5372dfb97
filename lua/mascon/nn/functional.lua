--- mc.nn.functional: the ops behind the modules, without parameters of their own. One file a family.
local ops = require "mascon.ops"
local reduce = require "mascon.reduce"

local F = {}

local families = {
  linear = "linear embedding dropout",
  norm = "rms_norm layer_norm",
  loss = "cross_entropy nll_loss mse_loss l1_loss binary_cross_entropy_with_logits",
  attention = "rope attention split",
  moe = "router_topk moe_sort moe_permute moe_unpermute moe_aux_loss moe_z_loss",
}
for family, names in pairs(families) do
  local room = require("mascon.nn.functional." .. family)
  for name in names:gmatch "%S+" do F[name] = room[name] end
end

for name in ("relu gelu silu tanh sigmoid swiglu"):gmatch "%S+" do F[name] = ops[name] end
F.softmax, F.log_softmax = reduce.softmax, reduce.log_softmax

return F
