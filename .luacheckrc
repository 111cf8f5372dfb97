-- For luacheck: LuaJIT, no globals of our own; busted has words of its own in the specs.
std = "luajit"
cache = false
codes = true
exclude_files = {"build*", "runs"}
files["tests/spec"] = {std = "+busted"}
files[".busted"] = {std = "luajit"}
