--- Embedding: a table of vectors, looked up by token id.
local args = require "mascon.args"
local common = require "mascon.nn.common"
local functional = require "mascon.nn.functional"
local module = require "mascon.nn.module"

local Embedding = module.Module:extend "Embedding"

local spec = {
  num_embeddings = { "positive", required = true },
  embedding_dim = { "positive", required = true },
  dtype = common.DTYPE,
  device = { "string" },
  init_method = { "function" },
}

--- mc.nn.Embedding{num_embeddings =, embedding_dim =, dtype =, device =, init_method = fn(weight)}.
-- Parameter: weight [num_embeddings, embedding_dim], role "embedding"; starts normal with deviation 1.
function Embedding:init(opts)
  local o = args.options("Embedding", opts, spec)
  self.num_embeddings, self.embedding_dim = o.num_embeddings, o.embedding_dim
  self.weight = common.parameter("embedding", { o.num_embeddings, o.embedding_dim }, o,
    o.init_method or function(t) t:normal_(0, 1) end)
end

--- ids, int32 or int64 of any shape [..] -> [.., embedding_dim]
function Embedding:forward(ids)
  return functional.embedding(ids, self.weight)
end

function Embedding:extra_repr()
  return ("%d, %d"):format(self.num_embeddings, self.embedding_dim)
end

return Embedding
