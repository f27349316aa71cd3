//! [`Tls`]: the trusted certificates and the client certificate of `rediss://` connections.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, ErrorKind};

/// TLS settings for `rediss://` connections: trusted certificates, client certificate, server name.
///
/// Connections use rustls with the ring provider, and TLS 1.3 or 1.2. Requires the feature `tls`.
///
/// If no settings are given, a `rediss://` connection trusts the certificates that the system
/// trusts, and the server's certificate must be valid for the host in the URL.
///
/// ```no_run
/// use dogpile::Redis;
/// use dogpile::redis::Tls;
///
/// let tls = Tls::trusting(std::fs::read("ca.pem")?)?
///     .client(std::fs::read("client.pem")?, std::fs::read("client.key")?)?;
/// let redis = Redis::builder("rediss://cache.example:6380").tls(tls).build()?;
/// redis.ping()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Tls {
    roots: Arc<RootCertStore>,
    client: Option<Arc<ClientIdentity>>,
    server_name: Option<ServerName<'static>>,
}

/// The certificate chain and private key that authenticate this client.
struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Tls {
    /// Trusts the certificates that the system trusts.
    ///
    /// This is the default. Call it to combine them with a client certificate or another server
    /// name.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the system's certificates cannot be read, or if there are none.
    ///
    /// # Cost
    /// Reads the system's certificate store, which blocks.
    ///
    /// ```no_run
    /// use dogpile::redis::Tls;
    ///
    /// let (chain, key) = (std::fs::read("client.pem")?, std::fs::read("client.key")?);
    /// let tls = Tls::system()?.client(chain, key)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn system() -> Result<Self, Error> {
        let loaded = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Some systems hold outdated certificates that rustls cannot parse, so those are skipped.
        let (trusted, _) = roots.add_parsable_certificates(loaded.certs);
        if trusted == 0 {
            let why = loaded.errors.first().map_or_else(|| "the system has none".to_string(), ToString::to_string);
            return Err(config_error(format_args!(
                "reading the certificates that the system trusts: {why} (or pass some to `Tls::trusting`)"
            )));
        }
        Ok(Tls { roots: Arc::new(roots), client: None, server_name: None })
    }

    /// Trusts only these certificates, such as the one of a private certificate authority.
    ///
    /// `pem` holds one or more certificates in PEM format.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if a certificate cannot be parsed, or if `pem` holds none.
    pub fn trusting(pem: impl AsRef<[u8]>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem.as_ref(), "to be trusted")? {
            roots
                .add(certificate)
                .map_err(|error| config_error(format_args!("adding a certificate to be trusted: {error}")))?;
        }
        Ok(Tls { roots: Arc::new(roots), client: None, server_name: None })
    }

    /// Authenticates this client to the server with a certificate (mutual TLS). Default: none.
    ///
    /// `chain` holds the client certificate, followed by its intermediate certificates if there are
    /// any. `key` holds its private key. Both are in PEM format.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if `chain` or `key` cannot be parsed, or if the key does not match the
    /// certificate. The message does not show any part of the key.
    pub fn client(mut self, chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Self, Error> {
        let chain = certificates(chain.as_ref(), "of the client")?;
        // The parser's message is dropped, since it may contain a part of the key.
        let key = PrivateKeyDer::from_pem_slice(key.as_ref())
            .map_err(|_| config_error(format_args!("the client's key is not a private key in PEM format")))?;
        self.client = Some(Arc::new(ClientIdentity { chain, key }));
        self.config()?;
        Ok(self)
    }

    /// Sets the name that the server's certificate must be valid for. Default: the host in the URL.
    ///
    /// The name applies to all nodes of a cluster and, unless `server_tls` is called, to the
    /// sentinels and their servers alike. Set it if the URL holds an address that the certificate
    /// does not name.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if `name` is neither a DNS name nor an IP address.
    ///
    /// ```no_run
    /// use dogpile::redis::Tls;
    ///
    /// let tls = Tls::trusting(std::fs::read("ca.pem")?)?.server_name("cache.example")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn server_name(mut self, name: &str) -> Result<Self, Error> {
        self.server_name = Some(server_name(name)?);
        Ok(self)
    }

    /// Returns the parameters for connections to `host`.
    pub(crate) fn for_host(&self, host: &str) -> Result<TlsParams, Error> {
        let name = self.server_name.clone().map_or_else(|| server_name(host), Ok)?;
        Ok(TlsParams { config: self.config()?, name, overrides_host: self.server_name.is_some() })
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        // Chosen here: if a program links several providers, rustls has no default and panics.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| config_error(format_args!("{error}")))?
            .with_root_certificates(Arc::clone(&self.roots));
        let built = match &self.client {
            None => Ok(builder.with_no_client_auth()),
            Some(client) => builder.with_client_auth_cert(client.chain.clone(), client.key.clone_key()),
        };
        built.map(Arc::new).map_err(|error| config_error(format_args!("the client's certificate and key: {error}")))
    }
}

/// Shows neither certificates nor keys.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("roots", &self.roots.len())
            .field("client", &self.client.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// The TLS parameters of connections to one host.
#[derive(Clone)]
pub(crate) struct TlsParams {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    /// Whether `name` was set by [`Tls::server_name`] and so applies to all hosts.
    overrides_host: bool,
}

impl TlsParams {
    /// Returns the parameters for another host.
    pub(crate) fn for_host(&self, host: &str) -> Result<Self, Error> {
        let name = if self.overrides_host { self.name.clone() } else { server_name(host)? };
        Ok(TlsParams { config: Arc::clone(&self.config), name, overrides_host: self.overrides_host })
    }
}

/// Parses certificates in PEM format. `whose` describes them in errors.
fn certificates(pem: &[u8], whose: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    // The parser's message repeats its input, which may hold a key next to the certificates.
    let read = read.map_err(|error| {
        let what = match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no end",
            pem::Error::IllegalSectionStart { .. } => "a line starts with dashes and is not the start of a section",
            pem::Error::Base64Decode(_) => "a section is not valid base64",
            _ => "the text is malformed",
        };
        config_error(format_args!("parsing the certificates {whose} as PEM: {what}"))
    })?;
    if read.is_empty() {
        return Err(config_error(format_args!("the PEM text holds no certificate {whose}")));
    }
    Ok(read)
}

fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| config_error(format_args!("the server name {host:?} is neither a DNS name nor an IP address")))
}

#[cold]
fn config_error(what: fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Config, format!("setting up TLS: {what}"))
}
