//! The macros of eventbus; applications use them through `eventbus`, where they are documented.
