--- A byte-level mixture-of-experts language model, trained on the King James Bible.
--
--   scripts/mascon scripts/examples/kjv_moe.lua --run runs/kjv --stop-at half
--   scripts/mascon scripts/examples/kjv_moe.lua --run runs/kjv --resume --layout single
--
-- Two layers of attention and 8 experts, of which each byte visits 2. A run that stops, and resumes in the other
-- parameter layout, ends with the very bits of one that did not.
local argparse = require "argparse"
local dir = require "pl.dir"
local system = require "system"
local mc = require "mascon"
local nn = mc.nn
local F = nn.functional

local parser = argparse("kjv_moe", "Trains a mixture-of-experts language model on the King James Bible.")
parser:option("--run", "Folder for the log and the checkpoints.", "runs/kjv")
parser:option("--layout", "per_expert: a parameter for each expert; single: one for all.", "per_expert")
  :choices { "per_expert", "single" }
parser:option("--stop-at", "Save and stop after this step, or at `half`.")
  :convert(function(v) return v == "half" and v or tonumber(v) end)
parser:flag("--resume", "Go on from the latest checkpoint of the run, with its steps, batch and seed.")
parser:option("--steps", "Steps of the whole run.", "1800"):convert(tonumber)
parser:option("--batch", "Windows of 128 bytes in a step.", "8"):convert(tonumber)
parser:option("--seed", "Decides weights and batches.", "1"):convert(tonumber)
parser:option("--threads", "Threads to use; a resumed run needs as many for equal bits."):convert(tonumber)
local cli = parser:parse()

local config = { steps = cli.steps, batch = cli.batch, seed = cli.seed } -- what a resumed run must not change
local folder, latest, checkpoint = cli.run .. "/ckpt/", cli.run .. "/ckpt/latest", nil
dir.makepath(folder)
if cli.resume then
  local file = io.open(latest) or parser:error("nothing to resume: there is no " .. latest)
  checkpoint = folder .. file:read "*l"
  file:close()
  config = mc.load(checkpoint, { only = "config" }).config
end
if cli.threads then mc.set_num_threads(cli.threads) end
mc.manual_seed(config.seed)

-- The text: the first 90 % to learn from, the last 10 % to be measured on. Windows of 128 bytes.
local CONTEXT, WIDTH = 128, 128
local train, validation = mc.data.split(mc.data.bytes(mc.data.kjv()), 0.9)
local batches = mc.data.Windows { data = train, length = CONTEXT, batch_size = config.batch, seed = config.seed }

-- The model: attention and experts, twice. The embedding is the output layer too.
local function normal(t) t:normal_(0, 0.02) end

local Block = nn.Module:extend "Block"
function Block:init()
  self.norm1 = nn.RMSNorm { normalized_shape = WIDTH }
  self.attention = nn.CausalSelfAttention { embed_dim = WIDTH, num_heads = 4, init_method = normal }
  self.norm2 = nn.RMSNorm { normalized_shape = WIDTH }
  self.moe = nn.MoE { hidden_size = WIDTH, ffn_hidden_size = 128, num_experts = 8, top_k = 2, aux_loss_coeff = 0.01,
    z_loss_coeff = 0.001, single_grouped_weight = cli.layout == "single", init_method = normal }
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
local one, two = model.blocks[1].moe, model.blocks[2].moe
local optimizer = mc.optim.AdamW { lr = 4e-3, betas = { 0.9, 0.95 }, weight_decay = 0.1, params = {
  { params = model, roles = { "norm", "embedding" }, weight_decay = 0 }, -- the first group that fits takes it
  { params = model },
} }
local rate = mc.optim.schedule.warmup_cosine { warmup = math.floor(config.steps / 20), total = config.steps,
  peak = 4e-3, final = 4e-4 }

-- Everything that decides the rest of the run comes back from the file, whatever the layout it was saved in.
local step = 0
if checkpoint then
  local targets = { model = model, optimizer = optimizer, data = batches }
  step = mc.checkpoint.load_into(checkpoint, targets, { rng = true }).rest.step
  print(("resumed at step %d from %s; experts are %s here"):format(step, checkpoint, cli.layout))
end

local function train_step()
  local x, y = batches:next()
  local lm_loss = F.cross_entropy(model(x), y)
  local loss = lm_loss + one.aux + two.aux
  loss:backward()
  local norm = mc.optim.clip_grad_norm_(model, 1.0)
  optimizer:set_lr(rate(step))
  optimizer:step()
  optimizer:zero_grad()
  return { loss = loss:item(), lm_loss = lm_loss:item(), grad_norm = norm:item(), lr = rate(step),
    aux_loss = (one.metrics.aux_loss + two.metrics.aux_loss):item() / 2,
    z_loss = (one.metrics.z_loss + two.metrics.z_loss):item() / 2 }
end

local function balance()
  local line = mc.train.moe_metrics { one.metrics.counts, two.metrics.counts }
  local router = mc.train.router_metrics(mc.cat { one.metrics.scores, two.metrics.scores })
  for name, value in pairs(router) do line[name] = value end
  line["moe/load"] = { one.metrics.counts:totable(), two.metrics.counts:totable() }
  return line
end

local log = mc.train.Logger { path = cli.run .. "/log.jsonl", resume = cli.resume, config = config }
local tokens = config.batch * CONTEXT -- in a step
local bar = mc.train.Progress { total = config.steps, start = step, scale = tokens, rate_unit = "tokens" }
local last = cli.stop_at == "half" and math.floor(config.steps / 2) or cli.stop_at or config.steps
while step < last do
  step = step + 1
  local began = system.monotime()
  local line = mc.scope(train_step) -- frees what the step made
  line.step, line.tokens, line.tokens_per_s = step, step * tokens, tokens / (system.monotime() - began)
  log:log("step", line)
  if step % 50 == 0 then
    local moe = mc.scope(balance)
    moe.step, moe.tokens = step, step * tokens
    log:log("moe", moe)
  end
  bar:update(step, ("loss %.3f"):format(line.lm_loss))
end
bar:finish()

-- A checkpoint, whole or not at all; then the name of the latest one.
local name = ("step_%d.h5"):format(step)
mc.save(folder .. name, { model = model:state_dict(), optimizer = optimizer:state_dict(), data = batches:state_dict(),
  rng = mc.get_rng_state(), step = step, config = config })
local file = assert(io.open(latest .. ".new", "w"))
file:write(name, "\n")
file:close()
assert(os.rename(latest .. ".new", latest))
log:log("ckpt", { step = step, path = folder .. name })
print(("saved %s%s"):format(folder, name))
if step < config.steps then os.exit(0) end

-- How good it is: bits per byte over the whole validation text.
model:eval()
local nats, bytes = 0, 0
local function loss_of(x, y) return F.cross_entropy(model(x), y, { reduction = "sum" }):item() end
for x, y in mc.data.windows_in_order(validation, CONTEXT, 32) do
  nats, bytes = nats + mc.no_grad(mc.scope, loss_of, x, y), bytes + y:numel()
end
local bpb = nats / math.log(2) / bytes
log:log("eval", { step = step, val_bpb = bpb, bytes = bytes })

-- What it says, each byte drawn from its probabilities at temperature 0.8.
local text = { ("Ge1:1 In the"):byte(1, -1) }
local function next_byte()
  local window = { unpack(text, math.max(1, #text - CONTEXT + 1)) }
  local logits = model(mc.tensor({ window }, { dtype = "int32" }))[1][#window]
  local below = (logits / 0.8):softmax():cumsum(1):le(mc.rand(1))
  return math.min(255, below:sum():item())
end
for _ = 1, 300 do text[#text + 1] = mc.no_grad(mc.scope, next_byte) end
print(("\n%s\n\n%.4f bits per byte over the last 10 %% of the text"):format(string.char(unpack(text)), bpb))
print(("log: %s/log.jsonl   checkpoint: %s%s"):format(cli.run, folder, name))
log:log("end", { step = step })
log:close()
