/* SHA-256 against the examples of FIPS 180-4 and the empty text, whole and in pieces. */
#include "base/sha256.h"
#include "support/support.h"

#include <string.h>

static void test_known_hashes(void **state) {
    (void)state;
    static const struct {
        const char *text, *hex;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    char hex[65];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sha256_hex(cases[i].text, strlen(cases[i].text), hex);
        assert_string_equal(hex, cases[i].hex);
    }
}

static void test_pieces(void **state) {
    (void)state;
    char data[300], whole[65], pieces[65];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (char)i;
    for (size_t size = 0; size < sizeof data; size++) {
        struct sha256 sha;
        sha256_hex(data, size, whole);
        sha256_init(&sha);
        for (size_t at = 0, n; at < size; at += n) {
            n = size - at < 7 ? size - at : 7;
            sha256_update(&sha, data + at, n);
        }
        sha256_finish_hex(&sha, pieces);
        assert_string_equal(whole, pieces);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known_hashes), cmocka_unit_test(test_pieces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
