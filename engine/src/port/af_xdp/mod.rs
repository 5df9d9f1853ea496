//! af_xdp
