//! Assembly: from a checked configuration to a running pool (hub, models, engine and text meet only here).
