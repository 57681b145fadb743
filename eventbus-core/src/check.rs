//! Compile-time checks that generated code calls in a `const`.
