package hostile

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// tokens makes a registry ask for a bearer token, each good for a few requests
// only. The registry's lock guards it.
type tokens struct {
	user, password string
	uses           int // of one token
	left           map[string]int
}

// Login makes the registry ask for a token, which the token service gives to this
// user only, and which is good for so many requests.
func (r *Registry) Login(user, password string, uses int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens = &tokens{user: user, password: password, uses: uses, left: map[string]int{}}
}

func (t *tokens) admits(req *http.Request) bool {
	token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
	if t.left[token] == 0 {
		return false
	}
	t.left[token]--
	return true
}

// issue answers a request for a token, by either of the two ways of asking.
func (t *tokens) issue(a *Answer) {
	user, password, _ := a.Request.BasicAuth()
	if a.Request.Method == http.MethodPost && a.Request.ParseForm() == nil {
		user, password = a.Request.PostForm.Get("username"), a.Request.PostForm.Get("password")
	}
	if user != t.user || password != t.password {
		a.Status = http.StatusUnauthorized
		// What some proxies do: show in the answer what came with the request.
		a.Body = []byte("no access for " + user + ":" + password + " " + strings.Join(a.Request.Header.Values("Authorization"), " "))
		return
	}
	token := fmt.Sprintf("secret-token-%d", len(t.left))
	t.left[token] = t.uses
	a.Status = http.StatusOK
	a.Body, _ = json.Marshal(map[string]string{"token": token, "access_token": token}) // strings only
}
