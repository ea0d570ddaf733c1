package main

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/pflag"

	"github.com/kapernikov/osctl/pkg/publish"
)

// certificateFlags say whose a signature is, and who tells when it was made.
type certificateFlags struct{ certificate, chain, timestamps string }

func (f *certificateFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.certificate, "certificate", "", "PEM `file` with the certificate of the key, to lie beside the signature")
	flags.StringVar(&f.chain, "certificate-chain", "", "PEM `file` with the certificates of its authority, the root last")
	flags.StringVar(&f.timestamps, "timestamp-server", "", "`URL` of a service that says when it was signed (RFC 3161)")
}

func (f certificateFlags) check() error {
	if f.certificate == "" && f.chain+f.timestamps != "" {
		return usageError{errors.New("--certificate-chain and --timestamp-server are for a signature with --certificate")}
	}
	u, err := url.Parse(f.timestamps)
	if f.timestamps != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return usageError{fmt.Errorf("--timestamp-server %q: expected is a URL with http or https", f.timestamps)}
	}
	return nil
}

// load reads the certificate of a key; nil if none is asked for.
func (f certificateFlags) load(key *publish.Key) (*publish.Certificate, error) {
	if f.certificate == "" {
		return nil, nil
	}
	text, err := readKey(f.certificate)
	var chain []byte
	if err == nil && f.chain != "" {
		if chain, err = readKey(f.chain); err == nil && len(chain) == 0 {
			err = fmt.Errorf("%w: %s is empty", publish.ErrCertificate, f.chain)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	c, err := publish.LoadCertificate(text, chain, key, time.Now())
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.certificate, err)
	}
	return c, nil
}
