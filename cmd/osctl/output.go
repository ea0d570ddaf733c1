package main

import (
	"encoding/json"
	"io"
	"strings"
	"time"
	"unicode"
)

// apiVersion is the version of everything that --json prints.
const apiVersion = "osctl.kapernikov.com/v1"

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// when is a time for people, in UTC: machines in the field differ in their zones.
func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// printable is a text without what could play tricks on a terminal: what a registry or a
// stick has to say is shown before anybody has vouched for it.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) && r != '\n' {
			return -1
		}
		return r
	}, text)
}
