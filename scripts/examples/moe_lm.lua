--- A mixture-of-experts language model on a GPU: 1.32 B parameters on made-up tokens, or a small one on a real text.
--
--   scripts/mascon scripts/examples/moe_lm.lua --run runs/big --steps 100
--   scripts/mascon scripts/examples/moe_lm.lua --run runs/gcide --model small --data /usr/share/dictd/gcide.dict.dz
--     --tokenizer bpe --minutes 8
--
-- The model is in moe_lm_model.lua. On a GPU a step is recorded once as a CUDA graph and then replayed (--eager: not).
-- A budget in minutes rules the learning rate and the end; --stop-after ends a run before, and --resume goes on with
-- what is left, so that two runs of 4 minutes are one of 8. MFU: the share of the GPU's peak that 6 * parameters a
-- token meets + 6 * layers * width * context operations a token take.
local argparse = require "argparse"
local dir = require "pl.dir"
local path = require "pl.path"
local system = require "system"
local mc = require "mascon"
local lm = dofile((arg[0]:match "^.*/" or "") .. "moe_lm_model.lua")

local parser = argparse("moe_lm", "Trains a mixture-of-experts language model on a GPU.")
local function fail(why) parser:error(why) end
function parser:error(why) io.stderr:write(self:get_usage(), "\n\nmoe_lm: ", why, "\n") os.exit(2) end
local function positive(text)
  local n = tonumber(text)
  return n and n > 0 and n < math.huge and n or nil, ("wanted a number above 0, got '%s'"):format(text)
end
local function count(text)
  local n = tonumber(text)
  return n and n >= 1 and n % 1 == 0 and n or nil, ("wanted a whole number from 1, got '%s'"):format(text)
end
local function share(text)
  local n = tonumber(text)
  return n and n >= 0 and n < 1 and n or nil, ("wanted a number from 0 to below 1, got '%s'"):format(text)
end
parser:option("--run", "Folder for the log, the tokens and the checkpoints.", "runs/moe_lm")
parser:option("--model", "1.3b, small or tiny.", "1.3b"):choices { "1.3b", "small", "tiny" }
parser:option("--data", "synthetic, or a text: a file, also .gz, .dz or .xz.", "synthetic")
parser:option("--tokenizer", "bytes, or bpe: learnt from the text.", "bpe"):choices { "bytes", "bpe" }
parser:option("--steps", "Budget: this many steps."):convert(count)
parser:option("--minutes", "Budget: so much training, over all runs."):convert(positive)
parser:option("--stop-after", "Save and end this run after so many minutes; --resume goes on."):convert(positive)
parser:flag("--resume", "Go on from the latest checkpoint of the run, with the options that it had.")
parser:option("--state", "Optimizer state. fp32: master weights and moments; bf16: no master weights.", "fp32")
  :choices { "fp32", "bf16" }
parser:flag("--graph", "Replay the step as a CUDA graph (the default on a GPU).")
parser:flag("--eager", "Run every step op by op.")
for _, name in ipairs { "vocab", "batch", "context", "layers" } do
  parser:option("--" .. name, "Instead of the model's."):convert(count)
end
parser:option("--lr", "Peak of the learning rate, instead of the model's."):convert(positive)
parser:option("--dropout", "Instead of the model's."):convert(share)
parser:option("--weight-decay", "Of matrices, instead of the model's."):convert(positive)
parser:option("--seed", "Decides weights and batches.", "1"):convert(count)
parser:option("--log-every", "Steps between two lines of the log.", "50"):convert(count)
parser:option("--eval-every", "Minutes between two evaluations on held-out text.", "1"):convert(positive)
parser:option("--save-every", "Minutes between two checkpoints.", "10"):convert(positive)
parser:flag("--no-save", "No checkpoints.")
parser:option("--peak", "The device's peak in TFLOP/s, for MFU.", "989"):convert(positive) -- H100, H200: dense bfloat16
parser:option("--device", "cuda, cuda:1, cpu ...", mc.cuda.is_available() and "cuda" or "cpu")
local cli = parser:parse()

local made, why_not = dir.makepath(cli.run)
if not made then fail(("%s: %s"):format(cli.run, why_not)) end
mc.set_default_device(cli.device)
local checkpoints = mc.train.Checkpoints { folder = cli.run .. "/ckpt", keep = 2, async = true }

-- What a resumed run must not change.
local from = cli.resume and (checkpoints:latest() or fail("nothing to resume in " .. cli.run))
local config = from and mc.load(from, { only = "config" }).config
if not config then
  config = { model = cli.model, data = cli.data, tokenizer = cli.tokenizer, state = cli.state, seed = cli.seed,
    minutes = cli.minutes, steps = not cli.minutes and (cli.steps or 1000) or nil }
  if cli.steps and cli.minutes then fail "--steps and --minutes are both budgets; give one" end
  for name, value in pairs(lm.sizes[cli.model]) do
    config[name] = cli[name] or value -- command line before model
  end
  if config.data ~= "synthetic" and config.tokenizer == "bytes" then config.vocab = 256 end
end

-- -- data: tokens to learn from, and of texts the last 5 % to be measured on

-- Encodes a text, once for a run.
local function read_text()
  local file = cli.run .. "/tokens.h5"
  if path.isfile(file) then
    local saved = mc.load(file, { device = "cpu" })
    if saved.data == config.data and saved.tokenizer == config.tokenizer and saved.vocab == config.vocab
      and saved.size == path.getsize(config.data) then return saved end
  end
  local bpe, began = require "mascon.data.bpe", system.monotime()
  local text = require "mascon.data.text"(config.data)
  local first = math.floor(#text * 0.95)
  local train, held_out = text:sub(1, first), text:sub(first + 1)
  local tokenizer = bpe.train(train, { vocab_size = config.vocab })
  local made_of = { data = config.data, size = path.getsize(config.data), tokenizer = config.tokenizer,
    vocab = config.vocab, merges = tokenizer:state_dict().merges, train = tokenizer:encode(train),
    held_out = tokenizer:encode(held_out), held_out_bytes = #held_out }
  print(("%s: %.1f MB are %.1f M tokens of %d kinds; %.1f s"):format(config.data, #text / 1e6,
    (made_of.train:numel() + made_of.held_out:numel()) / 1e6, tokenizer.vocab_size, system.monotime() - began))
  mc.save(file, made_of)
  return made_of
end

io.stdout:setvbuf "line"
mc.manual_seed(config.seed)
local train, held_out, held_out_bytes
if config.data == "synthetic" then
  train = mc.randint(0, config.vocab, { 2 ^ 22 }, { dtype = "int32" })
else
  if not path.isfile(config.data) then fail("no such file: " .. config.data) end
  local text = read_text()
  train, held_out, held_out_bytes = text.train:to(cli.device), text.held_out:to(cli.device), text.held_out_bytes
end
local batches = require "mascon.data.device_windows" { data = train, length = config.context,
  batch_size = config.batch, seed = config.seed }

-- -- model, and everything that decides the rest of the run

local model = lm.Model(config)
local optimizer = lm.optimizer(model, config.state, config.lr, config.weight_decay)
local budget = mc.train.Budget { steps = config.steps, minutes = config.minutes }
local rate = mc.optim.schedule.warmup_cosine { warmup = 300, total = 10000, peak = config.lr, final = config.lr / 20 }
local step = 0
if from then
  local targets = { model = model, optimizer = optimizer, data = batches, budget = budget }
  step = mc.checkpoint.load_into(from, targets, { rng = true }).rest.step
  print(("resumed at step %d from %s"):format(step, from))
end
local flops, parameters, active = lm.cost(model, config)
print(("%.3f B parameters, of which a token meets %.1f M; %.2f GFLOP a token; on %s"):format(parameters / 1e9,
  active / 1e6, flops / 1e9, cli.device))

local log = mc.train.Logger { path = cli.run .. "/log.jsonl", resume = cli.resume, config = config }
local x, y = batches:next()
x, y = x:clone(), y:clone() -- a graph reads the same tensors at each replay
batches:load_state_dict { seed = config.seed, step = batches.step - 1 }
local function feed()
  local bx, by = batches:next()
  x:copy_(bx)
  y:copy_(by)
end
local function run_step() return mc.scope(lm.train_step, model, optimizer, x, y) end

local use_graph = not cli.eager and (cli.graph or cli.device:match "^cuda" ~= nil)
local graph, steps_here = nil, 0
local function next_step()
  mc.scope(feed)
  optimizer:set_lr(rate(math.max(1, 10000 * budget:share(step))))
  steps_here = steps_here + 1
  if not use_graph or steps_here <= 2 then return run_step() end -- the first two make the optimizer's state
  graph = graph or mc.cuda.graph(run_step, { device = cli.device })
  return (graph:replay())
end

local function evaluate()
  local nats = mc.train.held_out_loss(model, held_out, { length = config.context, batch_size = config.batch })
  local bpb = nats / math.log(2) / held_out_bytes
  log:log("eval", { step = step, val_bpb = bpb, bytes = held_out_bytes, minutes = budget:seconds() / 60 })
  print(("step %6d  %.4f bits per byte on held-out text"):format(step, bpb))
end

local pending
local function save()
  if cli.no_save then return end
  local file
  file, pending = checkpoints:save(step, { model = model:state_dict(), optimizer = optimizer:state_dict(),
    data = batches:state_dict(), budget = budget:state_dict(), rng = mc.get_rng_state(), step = step, config = config })
  log:log("ckpt", { step = step, path = file })
  print(("step %6d  saving %s"):format(step, file))
end

local tokens = config.batch * config.context -- in a step
local function report(now, steps, seconds)
  local line, a_second = {}, steps / seconds
  for _, name in ipairs { "loss", "lm_loss", "grad_norm" } do line[name] = now[name]:item() end
  local moe = mc.train.moe_metrics(now.counts)
  local idle = moe["moe/dead_expert_frac"] * #now.counts * config.experts
  line.step, line.tokens, line.lr = step, step * tokens, optimizer:get_lr()
  line.tokens_per_s, line.tflops = a_second * tokens, a_second * tokens * flops / 1e12
  line.mfu = line.tflops / cli.peak
  local memory = cli.device:match "^cuda" and mc.cuda.memory_stats(cli.device) or mc.memory_stats()
  line.live_bytes, line.peak_bytes = memory.live_bytes, memory.peak_bytes
  log:log("step", line)
  moe.step, moe.tokens, moe["moe/idle_experts"] = step, step * tokens, idle
  log:log("moe", moe)
  local left = budget:seconds_left(step, a_second)
  print(("step %6d %3d %%  loss %.4f  norm %.2f  lr %.1e  %.0fk tokens/s  %.0f TFLOP/s  MFU %.1f %%  "
    .. "%.1f GiB, peak %.1f  load %.2f, idle %d  %d:%02d left"):format(step, 100 * budget:share(step), line.lm_loss,
    line.grad_norm, line.lr, line.tokens_per_s / 1e3, line.tflops, 100 * line.mfu, line.live_bytes / 2 ^ 30,
    line.peak_bytes / 2 ^ 30, moe["moe/utilisation_max"], idle, left / 60, left % 60))
  if line.loss ~= line.loss or line.loss == math.huge then
    log:log("warn", { step = step, text = "the loss is not finite" })
    io.stderr:write "moe_lm: the loss is not finite\n"
    os.exit(6)
  end
end

-- -- the loop

if not from then budget:start() end
local AHEAD = 10 -- steps at most that the host gives out before the device has done them: the clock is the host's
local began = system.monotime()
local logged, logged_at, evaluated, saved = step, began, began, began
local function is_over()
  local stopped = cli.stop_after and steps_here > 0 and system.monotime() - began >= 60 * cli.stop_after
  return stopped or budget:is_spent(step)
end
while not is_over() do
  step = step + 1
  local now = next_step()
  if step % AHEAD == 0 then now.loss:item() end
  if step % cli.log_every == 0 or budget:is_spent(step) then
    now.loss:item() -- waits for the step
    local time = system.monotime()
    report(now, step - logged, time - logged_at)
    if held_out and time - evaluated >= 60 * cli.eval_every then
      evaluate()
      evaluated = system.monotime()
    end
    if time - saved >= 60 * cli.save_every then
      save()
      saved = system.monotime()
    end
    logged, logged_at = step, system.monotime()
  end
end
save()
if held_out then evaluate() end
if pending then pending:wait() end
log:log("end", { step = step, minutes = budget:seconds() / 60 })
