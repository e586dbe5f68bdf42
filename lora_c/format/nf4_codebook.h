/* The tables of the 4-bit types: NormalFloat with its 15 thresholds, and the values of the others. For C and CUDA.
 *
 * Source   QLoRA, arXiv:2305.14314, eq. 4 and appendix E: quantiles of N(0, 1), eight on the positive side, seven on the
 *          negative one and an exact zero, scaled to [-1, 1]. The values below are the published constants (MIT-licensed
 *          bitsandbytes); computing the quantiles again gives last digits that differ, so the table is canonical.
 * Threshold i is the float32 midpoint of values i and i + 1. x > threshold takes the higher code, x == threshold keeps
 * the lower one. The midpoint needs 25 bits, so three of the published 16-digit literals (codes 0, 12 and 14) round to
 * the wrong neighbour when a C compiler reads them as float; the values here are the float32 results of
 * (value(i) + value(i + 1)) / 2, rounded to nearest even, which is what the peer's CPU path compares with. */
#ifndef LORA_FORMAT_NF4_CODEBOOK_H
#define LORA_FORMAT_NF4_CODEBOOK_H

/* X(code, value) */
#define LORA_NF4_VALUES(X)                                                                                                                 \
    X(0, -1.0f)                                                                                                                            \
    X(1, -0.6961928009986877f)                                                                                                             \
    X(2, -0.5250730514526367f)                                                                                                             \
    X(3, -0.39491748809814453f)                                                                                                            \
    X(4, -0.28444138169288635f)                                                                                                            \
    X(5, -0.18477343022823334f)                                                                                                            \
    X(6, -0.09105003625154495f)                                                                                                            \
    X(7, 0.0f)                                                                                                                             \
    X(8, 0.07958029955625534f)                                                                                                             \
    X(9, 0.16093020141124725f)                                                                                                             \
    X(10, 0.24611230194568634f)                                                                                                            \
    X(11, 0.33791524171829224f)                                                                                                            \
    X(12, 0.44070982933044434f)                                                                                                            \
    X(13, 0.5626170039176941f)                                                                                                             \
    X(14, 0.7229568362236023f)                                                                                                             \
    X(15, 1.0f)

/* X(code below, threshold) */
#define LORA_NF4_THRESHOLDS(X)                                                                                                             \
    X(0, -0.8480963706970215f)                                                                                                             \
    X(1, -0.6106328964233398f)                                                                                                             \
    X(2, -0.4599952697753906f)                                                                                                             \
    X(3, -0.33967941999435425f)                                                                                                            \
    X(4, -0.23460739850997925f)                                                                                                            \
    X(5, -0.13791173696517944f)                                                                                                            \
    X(6, -0.045525018125772476f)                                                                                                           \
    X(7, 0.03979014977812767f)                                                                                                             \
    X(8, 0.120255246758461f)                                                                                                               \
    X(9, 0.2035212516784668f)                                                                                                              \
    X(10, 0.2920137643814087f)                                                                                                             \
    X(11, 0.3893125355243683f)                                                                                                             \
    X(12, 0.5016634464263916f)                                                                                                             \
    X(13, 0.6427869200706482f)                                                                                                             \
    X(14, 0.8614784479141235f)

/* FP4 of bitsandbytes: sign, two bits of exponent, one of mantissa, scaled to [-1, 1]; values not in order of their codes, code 8 is
 * a zero too. Source: get_4bit_type("fp4") of bitsandbytes. */
#define LORA_FP4_VALUES(X)                                                                                                                 \
    X(0, 0.0f)                                                                                                                             \
    X(1, 0.0052083334885537624f)                                                                                                           \
    X(2, 0.6666666865348816f)                                                                                                              \
    X(3, 1.0f)                                                                                                                             \
    X(4, 0.3333333432674408f)                                                                                                              \
    X(5, 0.5f)                                                                                                                             \
    X(6, 0.1666666716337204f)                                                                                                              \
    X(7, 0.25f)                                                                                                                            \
    X(8, 0.0f)                                                                                                                             \
    X(9, -0.0052083334885537624f)                                                                                                          \
    X(10, -0.6666666865348816f)                                                                                                            \
    X(11, -1.0f)                                                                                                                           \
    X(12, -0.3333333432674408f)                                                                                                            \
    X(13, -0.5f)                                                                                                                           \
    X(14, -0.1666666716337204f)                                                                                                            \
    X(15, -0.25f)

/* E2M1, the 4-bit float of the paper's comparison (table 2, "Float4 (E2M1)"; the element of OCP's microscaling formats): 0, 0.5, 1,
 * 1.5, 2, 3, 4 and 6 over 6, bit 3 the sign. Code 8 is a zero that is never made. */
#define LORA_FP4_E2M1_VALUES(X)                                                                                                            \
    X(0, 0.0f)                                                                                                                             \
    X(1, 0.0833333358168602f)                                                                                                              \
    X(2, 0.1666666716337204f)                                                                                                              \
    X(3, 0.25f)                                                                                                                            \
    X(4, 0.3333333432674408f)                                                                                                              \
    X(5, 0.5f)                                                                                                                             \
    X(6, 0.6666666865348816f)                                                                                                              \
    X(7, 1.0f)                                                                                                                             \
    X(8, 0.0f)                                                                                                                             \
    X(9, -0.0833333358168602f)                                                                                                             \
    X(10, -0.1666666716337204f)                                                                                                            \
    X(11, -0.25f)                                                                                                                          \
    X(12, -0.3333333432674408f)                                                                                                            \
    X(13, -0.5f)                                                                                                                           \
    X(14, -0.6666666865348816f)                                                                                                            \
    X(15, -1.0f)

/* Symmetric integers: code - 7 over 7. Code 15 would be 8: it is never made, and stands for 1. */
#define LORA_INT4_VALUES(X)                                                                                                                \
    X(0, -1.0f)                                                                                                                            \
    X(1, -0.8571428656578064f)                                                                                                             \
    X(2, -0.7142857313156128f)                                                                                                             \
    X(3, -0.5714285969734192f)                                                                                                             \
    X(4, -0.4285714328289032f)                                                                                                             \
    X(5, -0.2857142984867096f)                                                                                                             \
    X(6, -0.1428571492433548f)                                                                                                             \
    X(7, 0.0f)                                                                                                                             \
    X(8, 0.1428571492433548f)                                                                                                              \
    X(9, 0.2857142984867096f)                                                                                                              \
    X(10, 0.4285714328289032f)                                                                                                             \
    X(11, 0.5714285969734192f)                                                                                                             \
    X(12, 0.7142857313156128f)                                                                                                             \
    X(13, 0.8571428656578064f)                                                                                                             \
    X(14, 1.0f)                                                                                                                            \
    X(15, 1.0f)

#define LORA_NF4_ITEM(code, value) value,

#endif
