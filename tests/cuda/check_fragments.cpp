/* The table of fragments.h against the layouts of CuTe (CUTLASS), entry by entry; with the folder of its headers and CUDA's in the path. */
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>

#include "tests/cuda/fragments.h"

namespace {

int checked, wrong;

void compare(const char *what, int lane, int i, fragment_place got, int row, int col) {
    checked++;
    if (got.row == row && got.col == col) return;
    wrong++;
    printf("%s: lane %d, element %d: expected (%d, %d) as in CuTe, got (%d, %d)\n", what, lane, i, row, col, got.row, got.col);
}

/* Layouts of MMA_Traits go from (lane, element) to row + rows * column; those of B are transposed, (column, k). */
template <class Layout, int N>
void compare_mma(const char *what, Layout layout, const fragment_place (&table)[32][N], int first_size, bool transposed) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < N; i++) {
            int at = (int)layout(lane, i), first = at % first_size, second = at / first_size;
            compare(what, lane, i, table[lane][i], transposed ? second : first, transposed ? first : second);
        }
}

/* Those of Copy_Traits go from (lane, bit of its registers) to bit of the source: 32 rows of 8 elements of 16 bits, matrix by matrix. */
template <class Traits> void compare_load(const char *what, const fragment_place (&table)[32][2]) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 8; i++) {
            int element = (int)typename Traits::DstLayout{}(lane, 16 * i) / 16, line = element / 8;
            compare(what, lane, i, table[lane][i % 2], line % 8, element % 8);
            compare("matrix of a register", lane, i, {(uint8_t)(i / 2), 0}, line / 8, 0);
            /* Lane `line` gives the address of this line. */
            compare("lane of an address", lane, i, {(uint8_t)line, 0}, (int)typename Traits::SrcLayout{}(line, 0) / 128, 0);
        }
}

} // namespace

int main() {
    using mma = cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>;
    compare_mma("MMA_A", mma::ALayout{}, MMA_A, 16, false);
    compare_mma("MMA_B", mma::BLayout{}, MMA_B, 8, true);
    compare_mma("MMA_D", mma::CLayout{}, MMA_D, 16, false);
    compare_load<cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>>("LOAD_MATRIX", LOAD_MATRIX);
    compare_load<cute::Copy_Traits<cute::SM75_U16x8_LDSM_T>>("LOAD_MATRIX_TRANSPOSED", LOAD_MATRIX_TRANSPOSED);
    printf("%d places of fragments compared with CuTe's: %d faults\n", checked, wrong);
    return wrong != 0;
}
