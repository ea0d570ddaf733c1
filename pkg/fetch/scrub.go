package fetch

import (
	"encoding/base64"
	"regexp"
	"strings"
	"unicode"
)

// longestMessage bounds an error's text, in bytes: registries put theirs in it.
const longestMessage = 2000

// keepSecret notes what must never be shown: a password, or the value of an
// Authorization header.
func (w *wire) keepSecret(value string) {
	scheme, token, found := strings.Cut(value, " ")
	if !found {
		token = value
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hide(token)
	if pair, err := base64.StdEncoding.DecodeString(token); err == nil && strings.EqualFold(scheme, "Basic") {
		_, password, _ := strings.Cut(string(pair), ":")
		w.hide(password)
	}
}

// hide keeps a secret, unless it is so short that it would also be found in
// harmless words.
func (w *wire) hide(secret string) {
	if len(secret) >= 4 {
		w.secrets[secret] = true
	}
}

// scrubbed is an error whose text has no secrets and no control characters.
type scrubbed struct {
	error
	text string
}

func (s scrubbed) Error() string { return s.text }

func (s scrubbed) Unwrap() error { return s.error }

// scrub cleans the text of an error: of the credentials that were used, of the
// queries of addresses, which are credentials at object stores, and of what could
// play tricks on a terminal.
func (w *wire) scrub(err error) error {
	if err == nil {
		return nil
	}
	// First: what is left out in the middle of a secret must not hide it.
	text := strings.Map(func(r rune) rune {
		if (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) && r != '\n' {
			return -1
		}
		return r
	}, err.Error())
	text = regexp.MustCompile(`\?[^\s"]+`).ReplaceAllString(text, "?…")
	w.mu.Lock()
	for secret := range w.secrets {
		text = strings.ReplaceAll(text, secret, "…")
	}
	w.mu.Unlock()
	if len(text) > longestMessage {
		text = strings.ToValidUTF8(text[:longestMessage], "") + "…"
	}
	return scrubbed{err, text}
}
