# The pkg-config file finds its prefix from its own place, so that `cmake --install --prefix` and a moved tree work.
file(RELATIVE_PATH LOOPLM_PC_TO_PREFIX /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
string(REGEX REPLACE "/$" "" LOOPLM_PC_TO_PREFIX "${LOOPLM_PC_TO_PREFIX}")
configure_file(${CMAKE_SOURCE_DIR}/cmake/looplm.pc.in ${CMAKE_BINARY_DIR}/looplm.pc @ONLY)
configure_file(${CMAKE_SOURCE_DIR}/docs/looplm.1.in ${CMAKE_BINARY_DIR}/looplm.1 @ONLY)
install(TARGETS looplm_program looplm)
install(FILES ${CMAKE_SOURCE_DIR}/include/looplm.h TYPE INCLUDE)
install(FILES ${CMAKE_BINARY_DIR}/looplm.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${CMAKE_BINARY_DIR}/looplm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
