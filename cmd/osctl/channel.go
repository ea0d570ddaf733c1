package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/publish"
)

type channelOptions struct {
	registryFlags
	reference, key, digest string
	lasts                  time.Duration
	json                   bool
}

func channelCmd(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "channel",
		Short: "State which image is at the head of a channel",
		Long:  "channel makes the signed statements that machines follow a tag by (docs/channels.md).\n\n" + exitTable(),
		Args:  commandsOnly,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(channelPublishCmd(s))
	return cmd
}

func channelPublishCmd(s streams) *cobra.Command {
	var o channelOptions
	cmd := &cobra.Command{
		Use:   "publish REPOSITORY:CHANNEL --key FILE --lasts DURATION",
		Short: "Sign which digest a tag means, and until when",
		Long: `publish states, signed with a cosign key, that the tag CHANNEL means the image that
it leads to now, or with --digest that one, to which the tag is then moved. Machines
whose policy asks for it follow the tag no further, and no longer. The password of
the key comes from COSIGN_PASSWORD or from a prompt.

` + exitTable(),
		Args: exactArgs(1, 1, "key", "lasts"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.reference = args[0]
			return runChannelPublish(cmd.Context(), o, s)
		},
	}
	o.registryFlags.add(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "private key `file` (cosign.key)")
	f.DurationVar(&o.lasts, "lasts", 0, "how long machines may believe it, for example 168h")
	f.StringVar(&o.digest, "digest", "", "state this `sha256:…` of the repository, and move the tag to it")
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
	return cmd
}

// channelResult is the answer of channel publish --json.
type channelResult struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Channel    string    `json:"channel"`
	Product    string    `json:"product"`
	Version    string    `json:"version"`
	Digest     string    `json:"digest"`
	Issued     time.Time `json:"issued"`
	Expires    time.Time `json:"expires"`
}

func runChannelPublish(ctx context.Context, o channelOptions, s streams) error {
	if o.lasts < time.Second {
		return usageError{fmt.Errorf("--lasts %s; expected is how long the statement counts, for example 168h", o.lasts)}
	}
	if tagOf(o.reference) == "" {
		return usageError{errors.New("a channel is a tag: registry.example.com/os:stable")}
	}
	if err := checkDigestFlag(o.digest); err != nil {
		return err
	}
	key, err := loadKey(o.key, s)
	if err != nil {
		return err
	}
	c := publish.Channel{Head: digest.Digest(o.digest), Issued: time.Now(), Lasts: o.lasts}
	st, err := publish.PublishChannel(ctx, o.reference, c, key, publish.Options{PlainHTTP: o.plainHTTP})
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(s.out, channelResult{apiVersion, "Channel", o.reference, st.Product, st.Version, st.Digest.String(), st.Issued, st.Expires})
	}
	_, err = fmt.Fprintf(s.out, "%s is %s %s until %s\n  digest     %s\n", o.reference, st.Product, st.Version, when(st.Expires), st.Digest)
	return err
}
