package main

import (
	"encoding/json"
	"io"
	"time"
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
