# Which files make the library, the program and the double library, and the instruction sets of the kernel files.
file(GLOB LOOPLM_LIBRARY_SOURCES CONFIGURE_DEPENDS
    ${CMAKE_SOURCE_DIR}/src/*/*.c ${CMAKE_SOURCE_DIR}/src/tensor/cpu/*.c)
list(FILTER LOOPLM_LIBRARY_SOURCES EXCLUDE REGEX "/src/cli/")
set(LOOPLM_VECTOR_TABLES "_(avx|neon)[0-9a-z]*\\.c$") # the tables besides the scalar one
file(GLOB LOOPLM_CLI_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/cli/*.c)

set(LOOPLM_DOUBLE_SOURCES ${LOOPLM_LIBRARY_SOURCES})
list(FILTER LOOPLM_DOUBLE_SOURCES INCLUDE REGEX "/src/(base|tensor|text|model|train)/")
list(FILTER LOOPLM_DOUBLE_SOURCES EXCLUDE REGEX ${LOOPLM_VECTOR_TABLES})

# A file of src/tensor/cpu named *_SET.c is compiled for that instruction set alone, and LOOPLM_HAVE_SET tells the
# rest that its table exists. Everything else is compiled for the baseline of the architecture.
set(LOOPLM_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(LOOPLM_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512)
set(LOOPLM_FLAGS_avx512vnni ${LOOPLM_FLAGS_avx512} -mavx512vnni)
set(LOOPLM_FLAGS_avx512bf16 ${LOOPLM_FLAGS_avx512vnni} -mavx512bf16)
set(LOOPLM_FLAGS_avx512amx ${LOOPLM_FLAGS_avx512bf16} -mamx-tile -mamx-int8 -mamx-bf16)
set(LOOPLM_FLAGS_neon -march=armv8-a)
set(LOOPLM_FLAGS_neondot -march=armv8.2-a+dotprod)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    # Before registers are given out gcc moves loads up until a register tile's sums no longer fit.
    list(APPEND LOOPLM_FLAGS_neon -fno-schedule-insns)
    list(APPEND LOOPLM_FLAGS_neondot -fno-schedule-insns)
endif()

set(LOOPLM_WITHOUT "" CACHE STRING "Leave out the kernel tables whose names match this, for instance avx512: what a processor without them runs")

# Sanitizers go over kernel text once, as the AVX2 table (or the plain NEON one): the other tables are the same text, and with the address sanitizer
# gcc 12 needs a minute for each (4 s without; 22 s for AVX2, but minutes with the undefined-behaviour one, whose share the
# scalar table has: the same arithmetic).
foreach(set avx2 avx512 avx512amx avx512bf16 avx512vnni neon neondot)
    set(files ${LOOPLM_LIBRARY_SOURCES})
    list(FILTER files INCLUDE REGEX "/src/tensor/cpu/[^/]*_${set}\\.c$")
    if(NOT files)
        continue()
    endif()
    set(processors "^(x86_64|AMD64)$")
    if(set MATCHES "^neon")
        set(processors "^(aarch64|arm64)$")
    endif()
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "${processors}" AND NOT (LOOPLM_WITHOUT AND set MATCHES "${LOOPLM_WITHOUT}"))
        # Definitions for looplm alone, so that the double library never refers to a table that it lacks.
        set_property(SOURCE ${files} APPEND PROPERTY COMPILE_OPTIONS ${LOOPLM_FLAGS_${set}})
        if(LOOPLM_SANITIZE AND set MATCHES "^(avx2|neon)$")
            set_property(SOURCE ${files} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=undefined)
        elseif(LOOPLM_SANITIZE)
            set_property(SOURCE ${files} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=all)
        endif()
        string(TOUPPER "LOOPLM_HAVE_${set}" definition)
        list(APPEND LOOPLM_HAVE ${definition})
    else()
        list(REMOVE_ITEM LOOPLM_LIBRARY_SOURCES ${files})
    endif()
endforeach()
