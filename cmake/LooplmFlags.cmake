# How every file is compiled. The numeric contract needs -ffp-contract=off, and forbids -ffast-math and -march=native.
# There is no -DNDEBUG: the CHECKs stay in release builds.
set(CMAKE_C_FLAGS_RELEASE "-O3 -g")
set(CMAKE_C_FLAGS_DEBUG "-Og -g3")
set(CMAKE_C_FLAGS_SANITIZE "-O1 -g -fno-omit-frame-pointer" CACHE STRING "Flags of the sanitizer builds" FORCE)
set(CMAKE_EXE_LINKER_FLAGS_SANITIZE "" CACHE STRING "Linker flags of the sanitizer builds" FORCE)

add_library(looplm_flags INTERFACE)
target_compile_features(looplm_flags INTERFACE c_std_17)
target_compile_definitions(looplm_flags INTERFACE _GNU_SOURCE LOOPLM_VERSION="${PROJECT_VERSION}")
target_compile_options(looplm_flags INTERFACE
    -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -ffp-contract=off -fno-math-errno)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    # Texts that are too long are cut on purpose. Under sanitizers gcc guesses wrongly about what is uninitialised.
    target_compile_options(looplm_flags INTERFACE -Wno-format-truncation)
    if(LOOPLM_SANITIZE)
        target_compile_options(looplm_flags INTERFACE -Wno-maybe-uninitialized)
    endif()
endif()
target_include_directories(looplm_flags INTERFACE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)

# LOOPLM_SLOW thins the sweeps of the tests (THIN in tests/support/support.h): everything is 5 to 15 times slower.
# LOOPLM_SANITIZED is for tests that replace what a sanitizer replaces itself.
if(LOOPLM_SANITIZE OR CMAKE_CROSSCOMPILING_EMULATOR)
    target_compile_definitions(looplm_flags INTERFACE LOOPLM_SLOW)
endif()
if(LOOPLM_SANITIZE)
    target_compile_definitions(looplm_flags INTERFACE LOOPLM_SANITIZED)
    target_compile_options(looplm_flags INTERFACE -fsanitize=${LOOPLM_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(looplm_flags INTERFACE -fsanitize=${LOOPLM_SANITIZE})
endif()
