--- The mixture-of-experts language model of moe_lm.lua, its sizes, its optimizer and one step of its training.
--
-- Blocks of causal attention with rotary positions and of SwiGLU experts, each before an RMSNorm; bfloat16 but for the
-- routers, which are float32. Parameters of "1.3b", untied embedding and head:
--
--   12 layers x (32 experts x (2048 x 1024 + 1024 x 1024) + attention 4 x 1024^2 + router 32 x 1024 + norms 2 x 1024)
--   + final norm 1024 + embedding and head 2 x 32000 x 1024 = 1,324,246,016; a token meets 234,488,832 of them
local mc = require "mascon"
local nn, F = mc.nn, mc.nn.functional

local lm = {}

-- "small" learns a text of some 40 MB dozens of times over in minutes: hence its dropout and weight decay.
lm.sizes = {
  ["1.3b"] = { layers = 12, width = 1024, heads = 16, experts = 32, top_k = 4, hidden = 1024, vocab = 32000,
    context = 1024, batch = 16, dropout = 0, lr = 4e-4, weight_decay = 0.1 },
  small = { layers = 8, width = 512, heads = 8, experts = 8, top_k = 2, hidden = 1024, vocab = 4096,
    context = 512, batch = 64, dropout = 0.25, lr = 1e-3, weight_decay = 0.4 },
  tiny = { layers = 2, width = 64, heads = 2, experts = 4, top_k = 2, hidden = 64, vocab = 512,
    context = 64, batch = 8, dropout = 0.1, lr = 4e-3, weight_decay = 0.1 },
}

local function normal(deviation)
  return function(t) t:normal_(0, deviation) end
end

local Block = nn.Module:extend "Block"
function Block:init(o)
  local init = { normal(0.02), normal(0.02 / math.sqrt(2 * o.layers)) } -- of what enters the residual stream: less
  self.norm1 = nn.RMSNorm { normalized_shape = o.width, dtype = "bfloat16" }
  self.attention = nn.CausalSelfAttention { embed_dim = o.width, num_heads = o.heads, dtype = "bfloat16",
    init_method = init[1], output_init_method = init[2] }
  self.norm2 = nn.RMSNorm { normalized_shape = o.width, dtype = "bfloat16" }
  self.moe = nn.MoE { hidden_size = o.width, ffn_hidden_size = o.hidden, num_experts = o.experts, top_k = o.top_k,
    aux_loss_coeff = 0.01, z_loss_coeff = 0.001, single_grouped_weight = true, dtype = "bfloat16",
    init_method = init[1], output_init_method = init[2] }
  self.dropout = nn.Dropout { p = o.dropout }
end
function Block:forward(x)
  x = x + self.dropout(self.attention(self.norm1(x)))
  return x + self.dropout(self.moe(self.norm2(x)))
end

lm.Model = nn.Module:extend "Model"
function lm.Model:init(o)
  self.embed = nn.Embedding { num_embeddings = o.vocab, embedding_dim = o.width, dtype = "bfloat16",
    init_method = normal(0.02) }
  self.dropout = nn.Dropout { p = o.dropout }
  self.blocks = nn.ModuleList {}
  for _ = 1, o.layers do self.blocks:append(Block(o)) end
  self.norm = nn.RMSNorm { normalized_shape = o.width, dtype = "bfloat16" }
  self.head = nn.Linear { in_features = o.width, out_features = o.vocab, bias = false, dtype = "bfloat16",
    init_method = normal(0.02) }
end
function lm.Model:forward(ids)
  local x = self.dropout(self.embed(ids))
  for _, block in self.blocks:each() do x = block(x) end
  return self.head(self.norm(x))
end

--- AdamW, without weight decay for norms and the embedding. state "fp32": float32 master weights and moments; "bf16":
-- no master weights, moments in bfloat16.
function lm.optimizer(model, state, lr, weight_decay)
  local full = state == "fp32"
  return mc.optim.AdamW { lr = lr, betas = { 0.9, 0.95 }, weight_decay = weight_decay, master_weights = full,
    state_dtype = full and "float32" or "bfloat16", params = {
      { params = model, roles = { "norm", "embedding" }, weight_decay = 0 },
      { params = model },
    } }
end

--- One step; reads nothing on the host, so that it can be recorded in a graph.
-- @treturn table tensors: loss with and without the routers' losses, norm of the gradients, tokens by layer and expert
function lm.train_step(model, optimizer, x, y)
  local lm_loss = F.cross_entropy(model(x), y)
  local loss, counts = lm_loss, {}
  for i, block in model.blocks:each() do
    loss = loss + block.moe.aux
    counts[i] = block.moe.metrics.counts
  end
  loss:backward()
  local norm = mc.optim.clip_grad_norm_(model, 1.0)
  optimizer:step()
  optimizer:zero_grad()
  return { loss = loss:detach(), lm_loss = lm_loss:detach(), grad_norm = norm, counts = counts }
end

--- Floating-point operations of training for a token; parameters in all, and those that a token meets.
function lm.cost(model, o)
  local all, active = mc.train.parameter_counts(model)
  return mc.train.flops_per_token { active = active, layers = o.layers, width = o.width, context = o.context }, all,
    active
end

return lm
