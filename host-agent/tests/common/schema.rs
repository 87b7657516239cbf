//! Checks JSON against the schemas of `openapi.json`: as much of JSON Schema as they use. A keyword that is not known
//! here is an error, so that nothing is written there that nobody checks.

use serde_json::Value;

/// The named schemas of an OpenAPI document.
#[derive(Debug)]
pub struct Schemas(Value);

impl Schemas {
    pub fn of(document: &str) -> Self {
        Self(serde_json::from_str(document).expect("the document is JSON"))
    }

    pub fn document(&self) -> &Value {
        &self.0
    }

    /// The schema of that name.
    pub fn get(&self, name: &str) -> &Value {
        self.0.pointer(&format!("/components/schemas/{name}")).unwrap_or_else(|| panic!("openapi.json lacks {name}"))
    }

    /// Checks `value` against the schema of that name.
    pub fn check(&self, name: &str, value: &Value) -> Result<(), String> {
        self.against(self.get(name), value, name)
    }

    fn against(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = schema.as_object().ok_or_else(|| format!("{at}: its schema is not an object"))?;
        for (keyword, wanted) in schema {
            match keyword.as_str() {
                "description" | "default" => {}
                "$ref" => {
                    let path = wanted.as_str().and_then(|r| r.strip_prefix('#')).unwrap_or_default();
                    let target = self.0.pointer(path).ok_or_else(|| format!("{at}: {wanted} leads nowhere"))?;
                    self.against(target, value, at)?;
                }
                "type" => {
                    has_type(wanted, value).then_some(()).ok_or_else(|| format!("{at}: {value} is no {wanted}"))?
                }
                "enum" => {
                    let known = wanted.as_array().is_some_and(|all| all.contains(value));
                    known.then_some(()).ok_or_else(|| format!("{at}: {value} is none of {wanted}"))?;
                }
                "minimum" => {
                    let enough = value.as_i64().is_none_or(|v| Some(v) >= wanted.as_i64());
                    enough.then_some(()).ok_or_else(|| format!("{at}: {value} is below {wanted}"))?;
                }
                "minLength" | "maxLength" => {
                    let (length, limit) =
                        (value.as_str().map_or(0, |s| s.chars().count()), wanted.as_u64().unwrap_or(0));
                    let fits = if keyword == "minLength" { length as u64 >= limit } else { length as u64 <= limit };
                    fits.then_some(()).ok_or_else(|| format!("{at}: {keyword} {wanted}"))?;
                }
                "anyOf" => {
                    let all = wanted.as_array().map(Vec::as_slice).unwrap_or_default();
                    let errors: Vec<String> = all.iter().filter_map(|s| self.against(s, value, at).err()).collect();
                    (errors.len() < all.len()).then_some(()).ok_or_else(|| errors.join("; "))?;
                }
                "items" | "prefixItems" => {
                    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                        let schema = if keyword == "items" { Some(wanted) } else { wanted.get(i) };
                        let schema = schema.ok_or_else(|| format!("{at}: no item {i} is known"))?;
                        self.against(schema, item, &format!("{at}[{i}]"))?;
                    }
                }
                "required" => {
                    for key in wanted.as_array().into_iter().flatten().filter_map(Value::as_str) {
                        value.get(key).ok_or_else(|| format!("{at}: {key} is missing"))?;
                    }
                }
                "properties" => {
                    for (key, schema) in wanted.as_object().into_iter().flatten() {
                        if let Some(field) = value.get(key) {
                            self.against(schema, field, &format!("{at}.{key}"))?;
                        }
                    }
                }
                "additionalProperties" => {
                    let known = |key: &String| schema.get("properties").is_some_and(|p| p.get(key).is_some());
                    for (key, field) in value.as_object().into_iter().flatten().filter(|(key, _)| !known(key)) {
                        if *wanted == Value::Bool(false) {
                            return Err(format!("{at}.{key} is not in openapi.json"));
                        }
                        self.against(wanted, field, &format!("{at}.{key}"))?;
                    }
                }
                other => return Err(format!("{at}: tests/common/schema.rs does not know the keyword `{other}`")),
            }
        }
        Ok(())
    }
}

fn has_type(wanted: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    };
    wanted.as_array().map_or_else(|| is(wanted), |all| all.iter().any(is))
}
