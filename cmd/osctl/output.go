package main

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"
	"unicode"
)

// apiVersion is the version of everything that --json prints.
const apiVersion = "osctl.kapernikov.com/v1"

// outputError is a result that could not be written. What it tells of has happened.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

func (e outputError) Error() string { return "writing the result: " + e.error.Error() }

// resultWriter remembers that a write failed: a command may not look, and must not
// end with 0 then.
type resultWriter struct {
	w   io.Writer
	err error
}

func (r *resultWriter) Write(p []byte) (int, error) {
	n, err := r.w.Write(p)
	if err != nil {
		r.err = outputError{err}
		err = r.err
	}
	return n, err
}

// check is the error of a command, or that of writing its result.
func (r *resultWriter) check(err error) error {
	if silent := exitError(0); r.err == nil || err != nil && !errors.As(err, &silent) {
		return err
	}
	return r.err
}

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
