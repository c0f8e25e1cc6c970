# tests/FOLDER/test_MODULE.c is the CTest case FOLDER.MODULE; tests/FOLDER/double_MODULE.c is FOLDER.double_MODULE and
# links the double library. tests/support/*.c is shared by all.
set(LOOPLM_SHARED_DIR ${CMAKE_SOURCE_DIR}/../shared CACHE PATH "Where the large fixtures are, when they are there")
set(LOOPLM_TEST_TIMEOUT 300 CACHE STRING "Seconds that one test may take")

file(GLOB test_support CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/support/*.c)
file(GLOB test_files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/*/test_*.c ${CMAKE_SOURCE_DIR}/tests/*/double_*.c)

# What a shell runs the program by: under emulation, by the emulator.
set(test_program $<TARGET_FILE:looplm_program>)
if(CMAKE_CROSSCOMPILING_EMULATOR)
    string(JOIN " " test_program ${CMAKE_CROSSCOMPILING_EMULATOR} ${test_program})
endif()

add_library(looplm_test_flags INTERFACE)
target_link_libraries(looplm_test_flags INTERFACE PkgConfig::CMOCKA)
target_include_directories(looplm_test_flags INTERFACE ${CMAKE_SOURCE_DIR}/tests)
target_compile_definitions(looplm_test_flags INTERFACE
    LOOPLM_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
    LOOPLM_SHARED_DIR="${LOOPLM_SHARED_DIR}"
    LOOPLM_PROGRAM="${test_program}")
if(CMAKE_C_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    # gcc 12 for AArch64 fails with an internal error where it makes vectors of a sum in tests/tensor/test_forward.c.
    target_compile_options(looplm_test_flags INTERFACE -fno-tree-vectorize)
endif()

# A static library, so that a test takes only the helpers that it calls.
foreach(library looplm looplm_double)
    add_library(${library}_support STATIC EXCLUDE_FROM_ALL ${test_support})
    target_link_libraries(${library}_support PUBLIC looplm_test_flags ${library})
endforeach()

foreach(file ${test_files})
    get_filename_component(folder ${file} DIRECTORY)
    get_filename_component(folder ${folder} NAME)
    get_filename_component(module ${file} NAME_WE)
    if(module MATCHES "^test_")
        string(REGEX REPLACE "^test_" "" module ${module})
        set(library looplm)
    else()
        set(library looplm_double)
    endif()
    set(target test_${folder}_${module})
    add_executable(${target} ${file})
    target_link_libraries(${target} PRIVATE ${library}_support)
    add_dependencies(${target} looplm_program)
    add_test(NAME ${folder}.${module} COMMAND ${target})
    set_tests_properties(${folder}.${module} PROPERTIES TIMEOUT ${LOOPLM_TEST_TIMEOUT} LABELS ${folder})
endforeach()
