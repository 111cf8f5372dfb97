--- What mc.checkpoint.inspect found, as text: a header and a tree with experts folded together, or a line per tensor.
local names = require "mascon.checkpoint.plan_names"
local words = require "mascon.checkpoint.words"

local M = {}

-- ---------------------------------------------------------------- facts

-- Whether a tensor is state rather than model: an optimizer's, or a generator's.
local function is_optimizer(item)
  return item.layer and item.layer.optimizer_state or item.name:find("^optimizer%.") ~= nil
end

-- The file's own facts beside its tensors. A parameter is a floating element of what is no state; two names of one
-- tensor count once.
function M.facts(report)
  local facts = {parameters = 0, optimizer = false, rng = false, layers = {}}
  local counted, known = {}, {}
  for _, item in ipairs(report.tensors) do
    if is_optimizer(item) then
      facts.optimizer = true
    elseif item.name == "rng" then
      facts.rng = true
    elseif not item.problem and item.dtype:find("float", 1, true) and not counted[item.object] then
      facts.parameters = facts.parameters + names.numel(item.shape)
    end
    counted[item.object] = true
    local layer = item.layout and not known[item.layer] and item.layer
    if layer then
      known[layer] = true
      local entry = {name = item.name:match("^(.*)%.[^.]*$") or ""}
      for key, value in pairs(layer) do entry[key] = value end
      table.insert(facts.layers, entry)
    end
  end
  for _, item in ipairs(report.values) do
    if item.name == "step" then facts.step = item.value end
  end
  return facts
end

-- ---------------------------------------------------------------- one line about tensors

local function stats_text(list)
  local known = {}
  for _, item in ipairs(list) do known[#known + 1] = item.stats end
  if #known == 0 then return "" end
  local s = #known == 1 and known[1] or require("mascon.checkpoint.stats").merge(known)
  local text = ""
  if s.min then text = ("  min %.6g  max %.6g  mean %.6g  std %.6g"):format(s.min, s.max, s.mean, s.std) end
  return ("%s  zeros %.0f  nan %.0f  inf %.0f"):format(text, s.zeros, s.nan, s.inf)
end

local function total_bytes(list)
  local bytes = 0
  for _, item in ipairs(list) do bytes = bytes + item.bytes end
  return bytes
end

-- Tensors of one shape and dtype: "8 x float32[256, 128]", and the rest.
local function cells_of(list)
  local item = list[1]
  if item.problem then return (item.bytes and "unreadable: " or "broken view: ") .. names.show(item.problem), "" end
  local what = (#list > 1 and ("%d x "):format(#list) or "") .. (item.dtype or "?") .. names.shape(item.shape)
  if not item.bytes then return what, ("%10s"):format("view") end
  local bytes, layout = names.bytes(total_bytes(list)), item.layout and "  " .. item.layout or ""
  return what, ("%10s%s%s"):format(bytes, layout, stats_text(list))
end

-- ---------------------------------------------------------------- the tree

local function new_node(label) return {label = label, children = {}, by = {}} end

local function child_of(node, label)
  local child = node.by[label]
  if not child then
    child = new_node(label)
    node.by[label] = child
    table.insert(node.children, child)
  end
  return child
end

-- The node of every part of every dotted name; tensors (views among them, which have no bytes) and values hang on the
-- last parts.
local function tree_of(report)
  local root = new_node("")
  for _, key in ipairs{"values", "tensors", "views"} do
    for _, item in ipairs(report[key]) do
      local node = root
      for part in (item.name .. "."):gmatch("(.-)%.") do node = child_of(node, part) end
      node[key == "values" and "value" or "tensor"] = item
    end
  end
  return root
end

local function items_below(node, tensors, values)
  if node.tensor and node.tensor.bytes then tensors[#tensors + 1] = node.tensor end
  values[#values + 1] = node.value
  for _, child in ipairs(node.children) do items_below(child, tensors, values) end
end

-- A whole subtree in one line.
local function summary_of(node)
  local tensors, values = {}, {}
  items_below(node, tensors, values)
  if #tensors == 0 then return words.plural(#values, "value"), "" end
  return words.plural(#tensors, "tensor"), ("%10s"):format(names.bytes(total_bytes(tensors)))
end

-- The children of a node, those that are members of one stem, shape and dtype taken together:
-- {label, tensors} or {label, node}.
local function rows_of(node)
  local rows, by_kind = {}, {}
  for _, child in ipairs(node.children) do
    local item = child.tensor
    local stem, index = names.split(child.label)
    local row
    if item and not child.value and #child.children == 0 and not item.problem and index and index ~= math.huge then
      local kind = table.concat({stem, tostring(item.dtype), names.shape(item.shape), tostring(item.layout),
        tostring(item.bytes == nil)}, "\0")
      row = by_kind[kind]
      if row then
        table.insert(row.tensors, item)
        table.insert(row.labels, child.label)
      else
        row = {tensors = {item}, labels = {child.label}}
        by_kind[kind] = row
        rows[#rows + 1] = row
      end
    else
      rows[#rows + 1] = {node = child, label = child.label}
    end
  end
  for _, row in ipairs(rows) do
    if row.labels then row.label = names.fold(row.labels)[1].text end
  end
  return rows
end

local function value_text(item)
  if item.value == nil then return ("= a text of %s"):format(names.bytes(item.bytes)) end
  return "= " .. words.show_value(item.value)
end

-- Adds {label, what, rest} rows below a node. A group of one child shares its line.
local function add_rows(lines, node, level, depth)
  local indent = ("  "):rep(level)
  for _, row in ipairs(rows_of(node)) do
    local label, child, row_depth = row.label, row.node, level + 1
    local only = child and not child.tensor and not child.value and rows_of(child) or {}
    while child and #only == 1 and row_depth < depth do
      label = label .. "." .. only[1].label
      row, child, row_depth = only[1], only[1].node, row_depth + 1
      only = child and not child.tensor and not child.value and rows_of(child) or {}
    end
    label = indent .. names.show(label)
    if row.tensors then
      lines[#lines + 1] = {label, cells_of(row.tensors)}
    else
      if child.value then lines[#lines + 1] = {label .. " " .. value_text(child.value)} end
      if child.tensor then lines[#lines + 1] = {label, cells_of({child.tensor})} end
      if #child.children > 0 then
        if row_depth >= depth then
          lines[#lines + 1] = {label, summary_of(child)}
        else
          if not child.tensor then lines[#lines + 1] = {label} end
          add_rows(lines, child, level + 1, depth - (row_depth - level - 1))
        end
      end
    end
  end
end

local function aligned(lines)
  local widths, texts = {0, 0}, {}
  for _, line in ipairs(lines) do
    for i = 1, 2 do
      -- a rare long name must not push everything to the right
      if line[3] and line[3] ~= "" and #line[i] <= 60 then widths[i] = math.max(widths[i], #line[i]) end
    end
  end
  for i, line in ipairs(lines) do
    local text = line[1]
    if line[2] then
      local third = line[3] and line[3] ~= ""
      text = names.pad(text, widths[1]) .. "  " .. (third and names.pad(line[2], widths[2]) or line[2])
      if third then text = text .. "  " .. line[3] end
    end
    texts[i] = text .. "\n"
  end
  return table.concat(texts)
end

-- ---------------------------------------------------------------- the whole

local function layers_text(layers)
  local order, count = {}, {}
  for _, layer in ipairs(layers) do
    if not layer.optimizer_state then
      local text = ("%s of %s experts, weight %s%s"):format(names.show(layer.type), words.thousands(layer.num_gemms),
        layer.weight_layout or "absent", layer.bias_layout and ", bias " .. layer.bias_layout or "")
      if not count[text] then order[#order + 1] = text end
      count[text] = (count[text] or 0) + 1
    end
  end
  local lines = {}
  for i, text in ipairs(order) do lines[i] = ("layers: %d x %s\n"):format(count[text], text) end
  return table.concat(lines)
end

--- The first lines of a report, from its facts.
function M.header(report, facts)
  local kind = report.format == "mascon" and ("mascon checkpoint, format %d, written by %s"):format(
    report.format_version, names.show(report.mascon_version)) or "HDF5"
  return ("%s: %s\n%s, %s, %s\nstep: %s   optimizer: %s   rng: %s\n%s"):format(names.show(report.path), kind,
    words.plural(#report.tensors, "tensor"), names.bytes(report.bytes), words.plural(facts.parameters, "parameter"),
    facts.step and words.show_value(facts.step) or "none", facts.optimizer and "yes" or "no",
    facts.rng and "yes" or "no", layers_text(facts.layers))
end

--- A line per tensor, value and view, with full names.
function M.flat(report)
  local lines = {}
  for _, item in ipairs(report.tensors) do lines[#lines + 1] = {names.show(item.name), cells_of({item})} end
  for _, item in ipairs(report.views) do lines[#lines + 1] = {names.show(item.name), cells_of({item})} end
  for _, item in ipairs(report.values) do lines[#lines + 1] = {names.show(item.name) .. " " .. value_text(item)} end
  return aligned(lines)
end

--- The tree of a report, down to a level.
-- @tparam[opt=math.huge] int depth
function M.tree(report, depth)
  local lines = {}
  add_rows(lines, tree_of(report), 0, depth or math.huge)
  return (#lines > 0 and "\n" or "") .. aligned(lines)
end

--- What mc.checkpoint.verify found: a line per damaged dataset and per fact that is not so, and the verdict.
function M.verified(report)
  local lines = {}
  for i, found in ipairs(report.damaged) do lines[i] = ("damaged: %s: %s\n"):format(found.name, found.message) end
  for _, found in ipairs(report.facts) do
    lines[#lines + 1] = ("layer: %s: %s\n"):format(found.name, found.message)
  end
  local verdict = report.checked > 0 and "ok" or "nothing to check"
  if not report.ok then verdict = #report.damaged > 0 and "DAMAGED" or "CONTRADICTS ITSELF" end
  local others = ""
  if #report.unverified > 0 then
    others = (", %s without a digest"):format(words.plural(#report.unverified, "dataset"))
  end
  lines[#lines + 1] = ("%s: %s, %s checked%s\n"):format(report.path, verdict,
    words.plural(report.checked, "dataset"), others)
  return table.concat(lines)
end

--- tostring of an inspect report.
function M.text(report) return M.header(report, M.facts(report)) .. M.tree(report) end

return M
