//! Mistakes that a test makes on purpose, to show that each invariant can fail.

/// What is made wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Nothing.
    #[default]
    None,
    /// A link swallows frames and does not count them.
    UncountedLoss,
    /// Between the underlay and a node's uplink frames vanish.
    SwallowedArrival,
    /// A node is not told of policies.
    DeafToPolicies,
    /// A link delivers tunnels of one tenant under the identifier of another.
    SwappedTenants,
    /// The store lets two writers win.
    BlindStore,
    /// A node that starts again finds no connections.
    ForgottenConnections,
    /// A node is not told of blocks.
    DeafToBlocks,
}
