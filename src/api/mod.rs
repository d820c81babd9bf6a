//! HTTP: one folder an endpoint family, each with wire, convert and stream.
