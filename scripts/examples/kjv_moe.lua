--- A byte-level mixture-of-experts language model, trained on the King James Bible.
--
--   scripts/mascon scripts/examples/kjv_moe.lua --run runs/kjv --stop-at half
--   scripts/mascon scripts/examples/kjv_moe.lua --run runs/kjv --resume --layout single
--
-- Two layers of attention and 8 experts, of which each byte visits 2. A run that stops, and resumes in the other
-- parameter layout with as many threads, ends with the very bits of one that did not.
local argparse = require "argparse"
local system = require "system"
local mc = require "mascon"
local nn, F = mc.nn, mc.nn.functional

local function count(text)
  local n = tonumber(text)
  return n and n >= 1 and n % 1 == 0 and n or nil, ("wanted a whole number from 1, got '%s'"):format(text)
end
local parser = argparse("kjv_moe", "Trains a mixture-of-experts language model on the King James Bible.")
function parser:error(why) io.stderr:write(self:get_usage(), "\n\nkjv_moe: ", why, "\n") os.exit(2) end
parser:option("--run", "Folder for the log and the checkpoints.", "runs/kjv")
parser:option("--layout", "per_expert: a parameter for each expert; single: one for all.", "per_expert")
  :choices { "per_expert", "single" }
parser:option("--stop-at", "Save and stop after this step, or at `half`.")
  :convert(function(text) if text == "half" then return text end return count(text) end)
parser:flag("--resume", "Go on from the latest checkpoint of the run, with its steps, batch and seed.")
parser:option("--steps", "Steps of the whole run.", "1800"):convert(count)
parser:option("--batch", "Windows of 128 bytes in a step.", "8"):convert(count)
parser:option("--seed", "Decides weights and batches.", "1"):convert(count)
local cli = parser:parse()

local checkpoints = mc.train.Checkpoints { folder = cli.run .. "/ckpt" }
local config = { steps = cli.steps, batch = cli.batch, seed = cli.seed } -- what a resumed run must not change
local from = cli.resume and (checkpoints:latest() or parser:error("nothing to resume in " .. cli.run))
if from then config = mc.load(from, { only = "config" }).config end
mc.manual_seed(config.seed)

-- The text: the first 90 % to learn from, the last 10 % to be measured on.
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
local optimizer = mc.optim.AdamW { lr = 4e-3, betas = { 0.9, 0.95 }, weight_decay = 0.1, params = {
  { params = model, roles = { "norm", "embedding" }, weight_decay = 0 }, -- the first group that fits takes it
  { params = model },
} }
local rate = mc.optim.schedule.warmup_cosine { warmup = math.floor(config.steps / 20), total = config.steps,
  peak = 4e-3, final = 4e-4 }

-- Everything that decides the rest of the run comes back from the file, whatever the layout it was saved in.
io.stdout:setvbuf "line"
local step = 0
if from then
  local targets = { model = model, optimizer = optimizer, data = batches }
  step = mc.checkpoint.load_into(from, targets, { rng = true }).rest.step
  print(("resumed at step %d from %s; experts are %s here"):format(step, from, cli.layout))
end

local function train_step()
  local x, y = batches:next()
  local lm_loss = F.cross_entropy(model(x), y)
  local loss = lm_loss + model.blocks[1].moe.aux + model.blocks[2].moe.aux
  loss:backward()
  local norm = mc.optim.clip_grad_norm_(model, 1.0)
  optimizer:set_lr(rate(step))
  optimizer:step()
  optimizer:zero_grad()
  return { loss = loss:item(), lm_loss = lm_loss:item(), grad_norm = norm:item(), lr = rate(step) }
end

local log = mc.train.Logger { path = cli.run .. "/log.jsonl", resume = cli.resume, config = config }
local tokens = config.batch * CONTEXT -- in a step
local bar = mc.train.Progress { total = config.steps, start = step, scale = tokens, rate_unit = "tokens" }
local last = cli.stop_at == "half" and math.floor(config.steps / 2) or cli.stop_at or config.steps
while step < math.min(last, config.steps) do
  step = step + 1
  local began = system.monotime()
  local line = mc.scope(train_step) -- frees what the step made
  line.step, line.tokens, line.tokens_per_s = step, step * tokens, tokens / (system.monotime() - began)
  log:log("step", line)
  bar:update(step, ("loss %.3f"):format(line.lm_loss))
  if step % 50 == 0 then
    line = mc.train.moe_metrics(model)
    line.step, line.tokens = step, step * tokens
    log:log("moe", line)
  end
end
bar:finish()

local saved = checkpoints:save(step, { model = model:state_dict(), optimizer = optimizer:state_dict(),
  data = batches:state_dict(), rng = mc.get_rng_state(), step = step, config = config })
log:log("ckpt", { step = step, path = saved })
print("saved " .. saved)
if step < config.steps then return end

-- How good it is: bits per byte over the whole validation text.
model:eval()
local nats, bytes = 0, 0
bar = mc.train.Progress { total = validation:numel() - 1, unit = "validation bytes", rate_unit = "bytes" }
for x, y in mc.data.windows_in_order(validation, CONTEXT, 32) do
  nats = nats + mc.no_grad(mc.scope, function() return F.cross_entropy(model(x), y, { reduction = "sum" }):item() end)
  bytes = bytes + y:numel()
  bar:update(bytes)
end
bar:finish()
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
log:log("end", { step = step })
