# bench/bench_NAME.c is the program bench_NAME; the other files of bench/ are shared by all. Built only when asked for:
# `cmake --build build/release --target bench_NAME`.
file(GLOB bench_programs CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/bench_*.c)
file(GLOB bench_shared CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/*.c)
list(REMOVE_ITEM bench_shared ${bench_programs})

foreach(file ${bench_programs})
    get_filename_component(target ${file} NAME_WE)
    add_executable(${target} EXCLUDE_FROM_ALL ${file} ${bench_shared})
    target_link_libraries(${target} PRIVATE looplm)
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/bench)
endforeach()
