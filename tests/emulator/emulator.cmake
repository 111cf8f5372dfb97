# The CUDA plugin's sources as C++ (emulator.h says how), in a tree of its own beside which the real
# library stands under the same names: MASCON_BUILD_DIR=<build>/emulated runs anything on it.
#
# Sets emulator_reason when there is no C++ compiler; else the targets are mascon_cuda_emulated and
# test_emulator, and the environment of the specs is in emulator_environment.
set(emulator_reason)
include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  set(emulator_reason "the emulator of the CUDA kernels needs a C++ compiler: apt-get install g++")
  return()
endif()
enable_language(CXX)

set(emulator_dir ${CMAKE_CURRENT_LIST_DIR})
set(emulated_root ${CMAKE_BINARY_DIR}/emulated)
set(emulator_environment MASCON_BUILD_DIR=${emulated_root} MASCON_TEST_DEVICE=cuda)

# As in a plugin: C++17 without contracted sums. A misaligned access is an error on a GPU, so it is
# one here.
add_library(emulator_flags INTERFACE)
target_compile_features(emulator_flags INTERFACE cxx_std_17)
target_compile_definitions(emulator_flags INTERFACE MCU_EMULATED _GNU_SOURCE)
target_compile_options(emulator_flags INTERFACE
  -O2 -g1 -Wall -Wextra -Wno-unknown-pragmas -Wno-maybe-uninitialized -ffp-contract=off -fno-math-errno
  -fvisibility=hidden -fno-omit-frame-pointer
  $<$<BOOL:${MASCON_WERROR}>:-Werror>
  -fsanitize=alignment$<$<BOOL:${MASCON_SANITIZE}>:,address,undefined> -fno-sanitize-recover=all)
target_link_options(emulator_flags INTERFACE
  -fsanitize=alignment$<$<BOOL:${MASCON_SANITIZE}>:,address,undefined>)
target_include_directories(emulator_flags INTERFACE
  ${emulator_dir} ${CMAKE_SOURCE_DIR}/core ${CMAKE_SOURCE_DIR}/cuda)

set(emulator_sources)
foreach(name fibers limits runtime streams)
  list(APPEND emulator_sources ${emulator_dir}/${name}.cpp)
endforeach()
set(emulated_sources)
foreach(source ${cuda_sources})
  list(APPEND emulated_sources ${CMAKE_SOURCE_DIR}/${source})
endforeach()
set_source_files_properties(${emulated_sources} PROPERTIES LANGUAGE CXX) # in this folder only

add_library(mascon_cuda_emulated MODULE
  ${emulated_sources} ${emulator_sources} ${emulator_dir}/gemm.cpp)
target_link_libraries(mascon_cuda_emulated PRIVATE emulator_flags pthread)
if(NOT MASCON_SANITIZE)
  target_link_options(mascon_cuda_emulated PRIVATE -Wl,-z,defs)
endif()
set_target_properties(mascon_cuda_emulated PROPERTIES OUTPUT_NAME mascon_cuda
  LIBRARY_OUTPUT_DIRECTORY ${emulated_root}/lib/mascon)

file(MAKE_DIRECTORY ${emulated_root}/lib/mascon)
file(CREATE_LINK ../lua ${emulated_root}/lua SYMBOLIC)
foreach(target mascon ${plugins} mascon_h5scan)
  if(TARGET ${target} AND NOT target STREQUAL "mascon_cuda")
    get_target_property(type ${target} TYPE)
    set(name lib${target}.so)
    if(type STREQUAL "EXECUTABLE")
      set(name ${target})
    endif()
    file(CREATE_LINK ../../../lib/mascon/${name} ${emulated_root}/lib/mascon/${name} SYMBOLIC)
    add_dependencies(mascon_cuda_emulated ${target})
  endif()
endforeach()
add_dependencies(mascon_cuda_emulated cdef)

add_executable(test_emulator
  ${emulator_dir}/test_emulator.cpp ${emulator_dir}/test_captures.cpp ${emulator_sources})
target_link_libraries(test_emulator PRIVATE emulator_flags pthread)
target_compile_options(test_emulator PRIVATE -UNDEBUG) # assert is a check here
