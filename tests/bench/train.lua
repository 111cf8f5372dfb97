--- train.lua: tokens per second of the quickstart's net (scripts/examples/kjv_moe.lua), and where its time goes.
--
--   scripts/mascon tests/bench/train.lua [steps] [batch]
--
-- One line: tokens/s of whole steps in one piece, then milliseconds of each part of a step, clocked in further
-- steps, and bytes live at the peak. Peer: train_torch.py, the same net, sizes and threads.
local system = require "system"
local mc = require "mascon"
local nn, F = mc.nn, mc.nn.functional

local STEPS, BATCH = tonumber(arg[1]) or 100, tonumber(arg[2]) or 8
local WARM_UP, CONTEXT, WIDTH = 20, 128, 128

mc.manual_seed(1)
local train = mc.data.split(mc.data.bytes(mc.data.kjv()), 0.9)
local batches = mc.data.Windows { data = train, length = CONTEXT, batch_size = BATCH, seed = 1 }

local function normal(t) t:normal_(0, 0.02) end

local Block = nn.Module:extend "Block"
function Block:init()
  self.norm1 = nn.RMSNorm { normalized_shape = WIDTH }
  self.attention = nn.CausalSelfAttention { embed_dim = WIDTH, num_heads = 4, init_method = normal }
  self.norm2 = nn.RMSNorm { normalized_shape = WIDTH }
  self.moe = nn.MoE { hidden_size = WIDTH, ffn_hidden_size = 128, num_experts = 8, top_k = 2, aux_loss_coeff = 0.01,
    z_loss_coeff = 0.001, init_method = normal }
end
function Block:forward(x)
  x = x + self.attention(self.norm1(x))
  return x + self.moe(self.norm2(x))
end

local Model = nn.Module:extend "Model"
function Model:init()
  self.embed = nn.Embedding { num_embeddings = 256, embedding_dim = WIDTH, init_method = normal }
  self.blocks = nn.ModuleList { Block(), Block() }
  self.norm = nn.RMSNorm { normalized_shape = WIDTH }
end
function Model:forward(ids)
  local x = self.embed(ids)
  for _, block in self.blocks:each() do x = block(x) end
  return F.linear(self.norm(x), self.embed.weight)
end

local model = Model()
local optimizer = mc.optim.AdamW { lr = 1e-3, betas = { 0.9, 0.95 }, weight_decay = 0.1, params = {
  { params = model, roles = { "norm", "embedding" }, weight_decay = 0 },
  { params = model },
} }

local PARTS = { "forward", "backward", "clip", "step" }
local spent = { forward = 0, backward = 0, clip = 0, step = 0 }
local function timed(part, fn, ...)
  local start = system.monotime()
  local a = fn(...)
  spent[part] = spent[part] + system.monotime() - start
  return a
end

local function forward(x, y)
  local loss = F.cross_entropy(model(x), y)
  for _, block in model.blocks:each() do loss = loss + block.moe.aux end
  return loss
end
local function update()
  optimizer:step()
  optimizer:zero_grad()
end

local function step()
  local x, y = batches:next()
  local loss = timed("forward", forward, x, y)
  timed("backward", loss.backward, loss)
  timed("clip", mc.optim.clip_grad_norm_, model, 1.0)
  timed("step", update)
  return loss:item()
end

for _ = 1, WARM_UP do mc.scope(step) end
for _, part in ipairs(PARTS) do spent[part] = 0 end
local start, cpu, loss = system.monotime(), os.clock(), nil
for _ = 1, STEPS do loss = mc.scope(step) end
local seconds = system.monotime() - start
cpu = os.clock() - cpu -- of all threads: says what a busy machine hides

local line = { ("train mascon %-8s %6.0f tokens/s  %5.1f ms/step (CPU %.1f)"):format(
  mc.get_num_threads() .. " threads", STEPS * BATCH * CONTEXT / seconds, seconds / STEPS * 1e3, cpu / STEPS * 1e3) }
for _, part in ipairs(PARTS) do line[#line + 1] = ("%s %.1f"):format(part, spent[part] / STEPS * 1e3) end
line[#line + 1] = ("peak %.1f MiB  loss %.17g"):format(mc.memory_stats().peak_bytes / 2 ^ 20, loss)
print(table.concat(line, "  "))
