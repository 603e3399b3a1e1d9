#pragma once

#include <iosfwd>
#include <string>

namespace popart {

enum class DataType {
  UINT8 = 0,
  INT8,
  UINT16,
  INT16,
  INT32,
  INT64,
  UINT32,
  UINT64,
  BOOL,
  FLOAT,
  FLOAT16,
  BFLOAT16,
  DOUBLE,
  COMPLEX64,
  COMPLEX128,
  STRING,
  FLOAT8_143,
  FLOAT8_152,
  UNDEFINED
};

std::ostream &operator<<(std::ostream &os, const DataType &type);

} // namespace popart
