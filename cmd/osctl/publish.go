package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/kapernikov/osctl/pkg/publish"
)

// registryFlags are those of the commands that write to a registry.
type registryFlags struct{ plainHTTP bool }

func (f *registryFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "permit HTTP without TLS (a loopback address needs no permission)")
}

type pushOptions struct {
	progressFlags
	registryFlags
	layout, reference string
	jobs              int
}

func pushCmd(s streams) *cobra.Command {
	var o pushOptions
	cmd := &cobra.Command{
		Use:   "push LAYOUT REF",
		Short: "Upload an OCI layout, with its signatures, to a registry",
		Long: `push uploads what the registry lacks, several blobs at a time, and the tag last.
LAYOUT is a folder, or an archive as osctl bundle makes it.
Credentials are those of docker login and nerdctl login.

` + exitTable(),
		Args: exactArgs(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.layout, o.reference = args[0], args[1]
			return runPush(cmd.Context(), o, s)
		},
	}
	o.progressFlags.add(cmd.Flags())
	o.registryFlags.add(cmd.Flags())
	cmd.Flags().IntVar(&o.jobs, "jobs", 4, "blobs to upload at a time")
	return cmd
}

func runPush(ctx context.Context, o pushOptions, s streams) error {
	if o.jobs < 1 {
		return usageError{fmt.Errorf("--jobs %d: expected is 1 or more", o.jobs)}
	}
	display, err := o.display(s)
	if err != nil {
		return err
	}
	digest, err := publish.Push(ctx, o.layout, o.reference, publish.Options{PlainHTTP: o.plainHTTP, Jobs: o.jobs, Progress: display.sink})
	display.finish()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "%s@%s\n", repositoryOf(o.reference), digest)
	return err
}

type signOptions struct {
	registryFlags
	target, key string
	annotations []string
	bundle      bool
	certificateFlags
}

func signCmd(s streams) *cobra.Command {
	var o signOptions
	cmd := &cobra.Command{
		Use:   "sign REF|LAYOUT --key FILE",
		Short: "Sign an OS image with a cosign key, and the certificate of that key",
		Long: `sign signs the digest of an OS image, in a registry or in a layout, with the
private key of a cosign key pair, as cosign sign --key does. The password comes
from COSIGN_PASSWORD or from a prompt. Annotations are claims that a policy may
ask for; a bundle carries none. With --certificate the signature says whose the
key is, and with --timestamp-server when it was made: a policy with identities
asks for both.

` + exitTable(),
		Args: exactArgs(1, 1, "key"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target = args[0]
			return runSign(cmd.Context(), o, s)
		},
	}
	o.registryFlags.add(cmd.Flags())
	cmd.Flags().StringVar(&o.key, "key", "", "private key `file` (cosign.key)")
	cmd.Flags().StringArrayVarP(&o.annotations, "annotations", "a", nil, "a claim `name=value` within the signature; may be given again")
	cmd.Flags().BoolVar(&o.bundle, "new-bundle-format", false, "make a sigstore bundle that refers to the image, not cosign's classic form")
	o.certificateFlags.add(cmd.Flags())
	return cmd
}

// claims reads the annotations.
func (o signOptions) claims() (map[string]string, error) {
	claims := map[string]string{}
	for _, text := range o.annotations {
		name, value, _ := strings.Cut(text, "=")
		if _, twice := claims[name]; name == "" || value == "" || twice {
			return nil, usageError{fmt.Errorf("--annotations %q: expected is name=value, each name once", text)}
		}
		claims[name] = value
	}
	if o.bundle && len(claims) > 0 {
		return nil, usageError{errors.New("both --annotations and --new-bundle-format: a bundle carries no annotations")}
	}
	return claims, nil
}

func runSign(ctx context.Context, o signOptions, s streams) error {
	claims, err := o.claims()
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	key, err := loadKey(o.key, s)
	if err != nil {
		return err
	}
	certificate, err := o.load(key)
	if err != nil {
		return err
	}
	signed, err := publish.Sign(ctx, o.target, key, publish.Options{
		PlainHTTP: o.plainHTTP, Annotations: claims, Bundle: o.bundle, Certificate: certificate, Timestamps: o.timestamps,
	})
	if err != nil {
		return err
	}
	note := ""
	if signed.Existing {
		note = " (it was signed by this key before)"
	}
	_, err = fmt.Fprintf(s.out, "%s is signed%s\n  signature  %s\n", signed.Digest, note, cmp.Or(signed.Tag, signed.Manifest.String()))
	return err
}

// loadKey reads a private key, with its password.
func loadKey(name string, s streams) (*publish.Key, error) {
	text, err := readKey(name)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	key, err := publish.LoadKey(text, func() ([]byte, error) { return password(s) })
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return key, nil
}

// maxKey is the largest key file that is read, in bytes: far more than any has.
const maxKey = 1 << 20

func readKey(name string) (text []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return io.ReadAll(io.LimitReader(f, maxKey))
}

// password comes from cosign's variable, which may be set and empty, or from a
// person.
func password(s streams) ([]byte, error) {
	if p, ok := os.LookupEnv("COSIGN_PASSWORD"); ok {
		return []byte(p), nil
	}
	file, ok := s.in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return nil, errors.New("the key has a password: set COSIGN_PASSWORD, or run this on a terminal")
	}
	fmt.Fprint(s.err, "Password of the key: ")
	p, err := term.ReadPassword(int(file.Fd()))
	fmt.Fprintln(s.err)
	return p, err
}
