#pragma once

// In codelets `half` is a type of the language, so it lives in no namespace.
typedef _Float16 half;
typedef half half2 __attribute__((vector_size(4)));
typedef half half4 __attribute__((vector_size(8)));
typedef float float2 __attribute__((vector_size(8)));
typedef float float4 __attribute__((vector_size(16)));
