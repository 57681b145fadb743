//! What is answered where a request fails: a status, and JSON that says why.

use crate::order::InvalidOrder;
use crate::orders::PlaceError;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no such order, or no such path.
    #[error("there is nothing here")]
    NotFound,
    /// The path is there, for other methods.
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    /// The body is not the JSON of an order.
    #[error("{}", .0.body_text())]
    Body(#[from] JsonRejection),
    /// The query is not understood.
    #[error("{}", .0.body_text())]
    Query(#[from] QueryRejection),
    /// The order cannot be taken.
    #[error("the order cannot be taken")]
    Invalid(#[from] InvalidOrder),
    /// The order was not placed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    /// The log failed.
    #[error(transparent)]
    Bus(#[from] eventbus::Error),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body(rejection) => rejection.status(),
            Self::Query(rejection) => rejection.status(),
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Place(PlaceError::OtherOrder(_)) => StatusCode::CONFLICT,
            // The client may try again, and should.
            Self::Place(PlaceError::Publish(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Place(PlaceError::Database(_)) | Self::Database(_) | Self::Bus(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            let error: &dyn std::error::Error = &self;
            tracing::error!(error, "a request failed");
        }
        let body = match &self {
            Self::Invalid(InvalidOrder(problems)) => {
                json!({ "error": self.to_string(), "problems": problems })
            }
            // What failed inside is for the log, and not for strangers.
            _ if status == StatusCode::INTERNAL_SERVER_ERROR => json!({ "error": "something failed here" }),
            _ => json!({ "error": self.to_string() }),
        };
        (status, Json(body)).into_response()
    }
}
