# Fuzzing, 20 seconds of it in a test run; tests/fuzz/run.sh does more by hand. The reader's files are compiled
# once more, by clang with libFuzzer and sanitizers; all else comes from the test library. A sanitizer's build has no
# fuzzers of its own: these are under sanitizers already.
set(fuzz_dir ${CMAKE_BINARY_DIR}/fuzz)
set(fuzz_here ${CMAKE_CURRENT_LIST_DIR})
set(fuzz_names reply open talk)
set(fuzz_seconds_reply 4)
set(fuzz_seconds_open 6)
set(fuzz_seconds_talk 3)
set(fuzz_sanitize -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)

set(fuzz_missing)
find_program(CLANG clang)
if(NOT CLANG)
  set(fuzz_missing "clang is missing: apt-get install clang")
elseif(NOT TARGET mascon_h5scan)
  set(fuzz_missing "libhdf5 is missing: apt-get install libhdf5-dev")
elseif(NOT DEFINED MASCON_LIBFUZZER)
  file(WRITE ${fuzz_dir}/try.c "int LLVMFuzzerTestOneInput(const char *p, long n) { return p && n < 0; }\n")
  execute_process(COMMAND ${CLANG} ${fuzz_sanitize} ${fuzz_dir}/try.c -o ${fuzz_dir}/try
    RESULT_VARIABLE fuzz_result OUTPUT_QUIET ERROR_QUIET)
  if(fuzz_result EQUAL 0)
    set(MASCON_LIBFUZZER ON CACHE INTERNAL "clang links libFuzzer")
  endif()
endif()
if(NOT fuzz_missing AND NOT MASCON_LIBFUZZER)
  set(fuzz_missing "libFuzzer is missing: apt-get install libclang-rt-dev")
endif()

if(MASCON_SANITIZE)
  # the planner's needs no compiler
elseif(fuzz_missing)
  foreach(name ${fuzz_names})
    mascon_skip(fuzz.${name} "${fuzz_missing}")
  endforeach()
else()
  set(fuzz_flags -std=gnu11 -g -O1 -fno-omit-frame-pointer -D_GNU_SOURCE -DMASCON_VERSION="${PROJECT_VERSION}"
    -I${CMAKE_SOURCE_DIR}/core -I${CMAKE_SOURCE_DIR}/core/cpu -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-but-set-variable) # no OpenMP here
  set(fuzz_sources ${core_sources})
  list(FILTER fuzz_sources INCLUDE REGEX "^core/io/")
  list(APPEND fuzz_sources tests/fuzz/mutate_file.c tests/fuzz/mutate_reply.c tests/fuzz/walk_file.c
    tests/fuzz/fuzz_reply.c tests/fuzz/fuzz_open.c tests/fuzz/fuzz_talk.c)
  set(fuzz_objects)
  foreach(source ${fuzz_sources})
    get_filename_component(stem ${source} NAME_WE)
    set(object ${fuzz_dir}/${stem}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CLANG} ${fuzz_flags} -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
              -MD -MF ${object}.d -c ${CMAKE_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${CMAKE_SOURCE_DIR}/${source} DEPFILE ${object}.d VERBATIM)
    if(NOT stem MATCHES "^fuzz_")
      list(APPEND fuzz_objects ${object})
    endif()
  endforeach()
  set(fuzz_programs)
  foreach(name ${fuzz_names})
    set(program ${fuzz_dir}/fuzz_${name})
    add_custom_command(OUTPUT ${program}
      COMMAND ${CLANG} ${fuzz_sanitize} ${fuzz_dir}/fuzz_${name}.o ${fuzz_objects} $<TARGET_FILE:mascon_testcore>
              ${OpenMP_C_LIBRARIES} -lm -ldl -lpthread -o ${program}
      DEPENDS ${fuzz_dir}/fuzz_${name}.o ${fuzz_objects} mascon_testcore VERBATIM)
    list(APPEND fuzz_programs ${program})
    mascon_test(fuzz.${name} bash ${fuzz_here}/run.sh ${fuzz_seconds_${name}} ${name})
  endforeach()

  # The helper beside them finds every checksum right.
  get_target_property(fuzz_helper_sources mascon_h5scan SOURCES)
  list(TRANSFORM fuzz_helper_sources PREPEND ${CMAKE_SOURCE_DIR}/ REGEX "^core/")
  add_executable(fuzz_h5scan ${fuzz_helper_sources} ${fuzz_here}/scan_any_checksum.c)
  get_target_property(fuzz_helper_libraries mascon_h5scan LINK_LIBRARIES)
  target_link_libraries(fuzz_h5scan PRIVATE ${fuzz_helper_libraries})
  set_target_properties(fuzz_h5scan PROPERTIES OUTPUT_NAME mascon_h5scan RUNTIME_OUTPUT_DIRECTORY ${fuzz_dir}
    ENABLE_EXPORTS ON)

  add_executable(fuzz_parrot ${fuzz_here}/parrot.c)
  target_link_libraries(fuzz_parrot PRIVATE mascon_flags)
  set_target_properties(fuzz_parrot PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${fuzz_dir})

  # The seeds come from the real ones.
  add_executable(fuzz_seeds ${fuzz_here}/seeds.c)
  target_link_libraries(fuzz_seeds PRIVATE mascon_testcore PkgConfig::HDF5)
  set_target_properties(fuzz_seeds PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${MASCON_MODULE_DIR})
  add_dependencies(fuzz_seeds ${plugins} mascon_h5scan)
  add_custom_target(fuzz ALL DEPENDS ${fuzz_programs})
  add_dependencies(fuzz fuzz_h5scan fuzz_parrot fuzz_seeds)
endif()

if(LUAJIT)
  mascon_test(fuzz.planner bash ${fuzz_here}/run.sh 4 planner)
else()
  mascon_skip(fuzz.planner "luajit is missing: apt-get install luajit")
endif()
