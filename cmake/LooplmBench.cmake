# bench/bench_NAME.c is the program bench_NAME; the other files of bench/ are shared by all. Built only when asked for:
# `cmake --build build/release --target bench_NAME`.
file(GLOB bench_programs CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/bench_*.c)
file(GLOB bench_shared CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/*.c)
list(REMOVE_ITEM bench_shared ${bench_programs})

# bench_blas is there where a library to compare with is.
pkg_search_module(OPENBLAS IMPORTED_TARGET QUIET openblas scipy-openblas)
find_package(dnnl CONFIG QUIET)
if(NOT OPENBLAS_FOUND AND NOT dnnl_FOUND)
    list(FILTER bench_programs EXCLUDE REGEX "/bench_blas\\.c$")
endif()

foreach(file ${bench_programs})
    get_filename_component(target ${file} NAME_WE)
    add_executable(${target} EXCLUDE_FROM_ALL ${file} ${bench_shared})
    target_link_libraries(${target} PRIVATE looplm)
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/bench)
endforeach()

if(OPENBLAS_FOUND)
    target_link_libraries(bench_blas PRIVATE PkgConfig::OPENBLAS)
    target_compile_definitions(bench_blas PRIVATE LOOPLM_BENCH_OPENBLAS)
endif()
if(dnnl_FOUND)
    find_package(OpenMP REQUIRED COMPONENTS C)
    target_link_libraries(bench_blas PRIVATE DNNL::dnnl OpenMP::OpenMP_C)
    target_compile_definitions(bench_blas PRIVATE LOOPLM_BENCH_ONEDNN)
endif()
