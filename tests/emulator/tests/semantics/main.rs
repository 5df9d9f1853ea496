//! What the documents of the Kubernetes API promise, asked over plain HTTP: of the emulator, or of the real server that
//! `KUBECONFIG` names. Each test says which promise; "api-concepts" is
//! `kubernetes.io/docs/reference/using-api/api-concepts`.

mod reads;
mod server;
mod watches;
mod writes;
