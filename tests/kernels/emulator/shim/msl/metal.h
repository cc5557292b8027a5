// All of it; every header of Metal's leads here.
#pragma once
#include "address_spaces.h"
#include "atomic.h"
#include "launch.h"
#include "math.h"
#include "scalars.h"
#include "simd.h"
#include "simdgroup_matrix.h"
#include "synchronization.h"
#include "type_traits.h"
#include "vectors.h"

using namespace metal;

// Words of C++ that Metal does not have. A lambda is one too, but the translation makes use of them.
#pragma GCC poison double virtual dynamic_cast typeid throw try catch new goto thread_local
