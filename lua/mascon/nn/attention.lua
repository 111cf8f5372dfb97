--- CausalSelfAttention: multi-head attention of a sequence to its own past, with rotary positions.
local args = require "mascon.args"
local functional = require "mascon.nn.functional"
local common = require "mascon.nn.common"
local Linear = require "mascon.nn.linear"
local module = require "mascon.nn.module"
local tensor = require "mascon.tensor"

local CAUSAL = { causal = true }

local CausalSelfAttention = module.Module:extend "CausalSelfAttention"

local spec = {
  embed_dim = { "positive", required = true },
  num_heads = { "positive", required = true },
  num_kv_heads = { "positive" },
  head_dim = { "positive" },
  rope = { "boolean", true },
  rope_theta = { "number", 10000 },
  bias = { "boolean", false },
  dtype = common.DTYPE,
  device = { "string" },
  init_method = { "function" },
  output_init_method = { "function" },
}

--- mc.nn.CausalSelfAttention{embed_dim =, num_heads =, num_kv_heads = num_heads, head_dim = embed_dim / num_heads,
-- rope = true, rope_theta = 10000, bias = false, dtype =, device =, init_method =, output_init_method = init_method}.
-- Fewer key and value heads than query heads: each is shared by a group of queries (Ainslie et al. 2023).
-- Parameters: qkv.weight [(num_heads + 2 num_kv_heads) head_dim, embed_dim], rows of the query heads, then the key
-- heads, then the value heads; o.weight [embed_dim, num_heads head_dim].
function CausalSelfAttention:init(opts)
  local o = args.options("CausalSelfAttention", opts, spec)
  local heads, kv = o.num_heads, o.num_kv_heads or o.num_heads
  if heads % kv ~= 0 then
    args.raise(("CausalSelfAttention: num_heads = %d is not a multiple of num_kv_heads = %d"):format(heads, kv))
  end
  if not o.head_dim and o.embed_dim % heads ~= 0 then
    args.raise(("CausalSelfAttention: embed_dim = %d is not a multiple of num_heads = %d; give head_dim")
      :format(o.embed_dim, heads))
  end
  local size = o.head_dim or o.embed_dim / heads
  if o.rope and size % 2 ~= 0 then
    args.raise(("CausalSelfAttention: head_dim = %d is odd, rotary positions turn pairs"):format(size))
  end
  self.num_heads, self.num_kv_heads, self.head_dim = heads, kv, size
  self.rope = o.rope and { theta = o.rope_theta } or nil
  self.qkv = Linear { in_features = o.embed_dim, out_features = (heads + 2 * kv) * size, bias = o.bias, dtype = o.dtype,
    device = o.device, init_method = o.init_method }
  self.o = Linear { in_features = heads * size, out_features = o.embed_dim, bias = o.bias, dtype = o.dtype,
    device = o.device, init_method = o.output_init_method or o.init_method }
end

--- x [B, T, embed_dim] -> [B, T, embed_dim]; position t sees 1 .. t.
function CausalSelfAttention:forward(x)
  local shape = tensor.want_tensor("CausalSelfAttention: x", x):shape()
  if #shape ~= 3 then
    args.raise(("CausalSelfAttention: x is [%s], wanted [B, T, embed_dim]"):format(table.concat(shape, ", ")))
  end
  local heads, kv, size = self.num_heads, self.num_kv_heads, self.head_dim
  local qkv = self.qkv(x):view(shape[1], shape[2], heads + 2 * kv, size)
  local qk, v = functional.split(qkv, { heads + kv, kv }, 3)
  if self.rope then qk = functional.rope(qk, self.rope) end
  local q, k = functional.split(qk, { heads, kv }, 3)
  local y = functional.attention(q, k, v, CAUSAL)
  return self.o(y:view(shape[1], shape[2], heads * size))
end

function CausalSelfAttention:extra_repr()
  return ("num_heads = %d, num_kv_heads = %d, head_dim = %d"):format(self.num_heads, self.num_kv_heads, self.head_dim)
end

return CausalSelfAttention
